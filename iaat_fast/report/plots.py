"""Figures of one run: radii and accuracies over epochs, and how the radii are distributed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iaat_fast.files import replace
from iaat_fast.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"

SNAPSHOTS = 4
"""Histograms drawn, as in the paper's Figure 8; more lines hide each other."""


def plot_run(folder: RunFolder) -> list[Path]:
    """Draw what the run has into its `plots` folder; a later call draws anew.

    - `accuracy.png`: accuracies over epochs.
    - `epsilon.png`: mean radius over epochs, one standard deviation and the whole range round it
      (methods iaat and mma).
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
    adaptive = config.get("method") in ("iaat", "mma")
    figures: dict[str, Figure] = {}
    if metrics:
        figures["accuracy.png"] = _accuracies(metrics)
    if metrics and adaptive:
        figures["epsilon.png"] = _radii(metrics)
    if snapshots and adaptive:
        figures["epsilon-histogram.png"] = _histograms(snapshots)
    folder.plots_dir.mkdir(exist_ok=True)
    return [_save(figure, folder.plots_dir / name) for name, figure in figures.items()]


def _accuracies(metrics: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _blank("Accuracy")
    curves = (
        ("test_accuracy", "test, natural", BLUE, "-"),
        ("train_clean_accuracy", "training, natural", GREEN, "--"),
        ("train_robust_accuracy", "training, under its own attack", ORANGE, ":"),
    )
    for key, label, colour, style in curves:
        points = [(row["epoch"], 100 * row[key]) for row in metrics if row.get(key) is not None]
        if points:
            _line(axes, *zip(*points, strict=True), color=colour, linestyle=style, label=label)
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.legend(frameon=False)
    return figure


def _radii(metrics: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _blank("Radius of the training samples")
    epochs = [row["epoch"] for row in metrics]
    mean, std, low, high = (
        255 * np.array([row[key] for row in metrics])
        for key in ("eps_mean", "eps_std", "eps_min", "eps_max")
    )
    axes.fill_between(epochs, low, high, color=BLUE, alpha=0.12, lw=0, label="smallest to largest")
    # Within the range: a deviation below the smallest radius would show radii that no sample has.
    axes.fill_between(
        epochs,
        np.maximum(mean - std, low),
        np.minimum(mean + std, high),
        color=BLUE,
        alpha=0.3,
        lw=0,
        label="± one standard deviation",
    )
    _line(axes, epochs, mean, color=BLUE, label="mean")
    axes.set(xlabel="epoch", ylabel="ε (1/255)")
    axes.legend(frameon=False)
    return figure


def _histograms(snapshots: dict[int, Path]) -> Figure:
    figure, axes = _blank("Distribution of the radii")
    epochs = list(snapshots)
    at = np.linspace(0, len(epochs) - 1, min(SNAPSHOTS, len(epochs))).round().astype(int)
    radii = {epochs[i]: 255 * np.load(snapshots[epochs[i]], allow_pickle=False) for i in at}
    every = np.concatenate(list(radii.values()))
    low, high = every.min(), every.max()
    # Radii move in steps of beta * gamma: with more bins than values the bars would form a comb.
    bins = min(40, len(np.unique(every.round(1))))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    from matplotlib import colormaps

    # One hue family, early epochs light: order is what the reader follows, and it prints in grey.
    shades = colormaps["viridis_r"](np.linspace(0.15, 1, len(radii)))
    for (epoch, values), shade in zip(radii.items(), shades, strict=True):
        if values.min() == values.max():
            # As a bar of 100 % it would press all other epochs into the axis.
            label = f"epoch {epoch} (all at {values[0]:.1f})"
            axes.axvline(values[0], color=shade, lw=1.8, linestyle="--", label=label)
            continue
        share = 100 * np.histogram(values, edges)[0] / len(values)
        label = f"epoch {epoch} (mean {values.mean():.1f}, std {values.std():.1f})"
        axes.stairs(share, edges, color=shade, lw=1.8, label=label)
    axes.set(xlabel="ε (1/255)", ylabel="training samples (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _blank(title: str) -> tuple[Figure, Axes]:
    # The Figure alone, without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(axes: Axes, x: Sequence[float], y: Any, **style: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    # A run of one epoch has a point and no line.
    axes.plot(x, y, lw=1.8, marker="o" if len(x) == 1 else None, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _save(figure: Figure, path: Path) -> Path:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    replace(path, image.getbuffer())
    return path
