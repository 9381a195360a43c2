"""Plots of one run: radii and accuracies over epochs, and the distribution of the radii."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iaat_fast import methods
from iaat_fast.report.figures.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    blank,
    legend,
    line,
    not_below_zero,
)
from iaat_fast.report.figures.radii import histograms
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_run(folder: RunFolder) -> list[Path]:
    """Draw the plots of a run into its `plots` folder; a later call draws them again.

    - `accuracy.png`: accuracies over epochs.
    - `epsilon.png`: mean radius over epochs, with one standard deviation and the whole range around it
      (for methods whose samples have radii of their own).
    - `epsilon-histogram.png`: the radii at up to four epochs (Balaji et al. 2019, Figure 8).

    Returns:
        The files written, none before the first epoch has ended.

    Raises:
        FileNotFoundError: no run there.
        ValueError: a file of the run is damaged.
        OSError: a figure cannot be written.
    """
    config = folder.config()
    metrics = folder.metrics()
    snapshots = folder.epsilon_snapshots()
    adaptive = methods.row(str(config.get("method"))).radius == "adaptive"
    figures: dict[str, Figure] = {}
    if metrics:
        figures["accuracy.png"] = _accuracies(metrics)
    if metrics and adaptive:
        figures["epsilon.png"] = _radii(metrics)
    if snapshots and adaptive:
        figures["epsilon-histogram.png"] = histograms(snapshots, title="Distribution of the radii")
    folder.plots_dir.mkdir(exist_ok=True)
    return [_save(figure, folder.plots_dir / name) for name, figure in figures.items()]


def _accuracies(metrics: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = blank("Accuracy")
    curves = (
        ("test_accuracy", "test, natural", BLUE, "-"),
        ("train_clean_accuracy", "training, natural", GREEN, "--"),
        ("train_robust_accuracy", "training, under its own attack", ORANGE, ":"),
    )
    for key, label, colour, style in curves:
        points = [(row["epoch"], 100 * row[key]) for row in metrics if row.get(key) is not None]
        if points:
            line(axes, *zip(*points, strict=True), color=colour, linestyle=style, label=label)
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    not_below_zero(axes)
    legend(axes)
    return figure


def _radii(metrics: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = blank("Radius of the training samples")
    epochs = [row["epoch"] for row in metrics]
    mean, std, low, high = (
        255 * np.array([row[key] for row in metrics])
        for key in ("eps_mean", "eps_std", "eps_min", "eps_max")
    )
    axes.fill_between(epochs, low, high, color=BLUE, alpha=0.12, lw=0, label="smallest to largest")
    # Cut to the range: a deviation below the smallest radius would show radii that no sample has.
    axes.fill_between(
        epochs,
        np.maximum(mean - std, low),
        np.minimum(mean + std, high),
        color=BLUE,
        alpha=0.3,
        lw=0,
        label="± one standard deviation",
    )
    line(axes, epochs, mean, color=BLUE, label="mean")
    axes.set(xlabel="epoch", ylabel="ε (1/255)")
    not_below_zero(axes)
    legend(axes)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    replace(path, image.getbuffer())
    return path
