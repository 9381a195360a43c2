"""Figures 5 and 8: radii over epochs, on average and of single samples, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from iaat_fast import methods
from iaat_fast.report.figures.drawing import (
    BLUE,
    GREEN,
    INK,
    LINES,
    MARKERS,
    ORANGE,
    SNAPSHOTS,
    Drawing,
    blank,
    legend,
    legend_above,
    line,
    not_below_zero,
    sequence,
    series,
)
from iaat_fast.report.groups import Group, Variant
from iaat_fast.report.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES_SEED = 0
"""Seed of the choice of the three samples in Figure 5."""


def load_radii(path: Path) -> np.ndarray:
    """A snapshot of the radii, float64 [size], in units of 1/255.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable snapshot of radii, probably cut short") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or not values.size:
        raise ValueError(f"{path}: expected radii [size], found {np.shape(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds radii that are not finite")
    # float64: a float32 mean of equal radii may lie above the largest of them.
    return 255 * values.astype(np.float64)


def own_radii(variant: Variant) -> RunRecord | None:
    """The first run of a variant whose samples have radii of their own; None for a fixed radius."""
    for run in variant.runs:
        if run.snapshots and np.ptp(load_radii(list(run.snapshots.values())[-1])) > 0:
            return run
    return None


def adaptive(group: Group) -> tuple[Variant, RunRecord] | None:
    """The run that represents a group in figures of one run: the last variant in the order of tables that adapts radii
    (IAAT with warm-up, if there is one); None if no variant does."""
    for variant in reversed(group.variants):
        if (run := own_radii(variant)) is not None:
            return variant, run
    return None


def undrawn(group: Group) -> list[str]:
    """Texts: which methods that adapt radii are missing in Figures 2 and 5 to 8, and why."""
    said = []
    nothing = adaptive(group) is None
    for variant in group.variants:
        run = variant.first
        if methods.row(run.config["method"]).radius != "adaptive" or own_radii(variant) is not None:
            continue
        why = f"{run.name} has no snapshot of its radii"
        if run.snapshots:
            epoch, path = list(run.snapshots.items())[-1]
            radius = load_radii(path)[0]
            why = f"all radii of {run.name} are equal after {epoch} epochs, {radius:.1f}/255"
        what = "not drawn" if nothing else f"without {variant.name}"
        said.append(f"Figures 2 and 5 to 8 of {group.name}: {what}, {why}")
    if (chosen := adaptive(group)) is not None and len(chosen[1].snapshots) == 1:
        name = chosen[1].name
        said.append(
            f"Figure 5 of {group.name}: single samples not drawn, {name} has one snapshot of its radii"
        )
    return said


def draw_progress(group: Group) -> list[Drawing]:
    """Figure 5: the mean radius over epochs of every variant, and three samples of one run."""
    found = [
        (variant, run) for variant in group.variants if (run := own_radii(variant)) is not None
    ]
    drawings = []
    curves = [
        (variant, [row for row in run.metrics if row.get("eps_mean") is not None])
        for variant, run in found
    ]
    curves = [(variant, rows) for variant, rows in curves if rows]
    if curves:
        figure, axes = blank()
        styles = series([variant.key for variant, _ in curves])
        for (variant, rows), style in zip(curves, styles, strict=True):
            mean = [255 * row["eps_mean"] for row in rows]
            kept = {name: style[name] for name in ("color", "linestyle")}
            line(axes, [row["epoch"] for row in rows], mean, label=variant.name, **kept)
        axes.set(xlabel="epoch", ylabel="mean ε (1/255)")
        _from_zero(axes)
        legend(axes)
        ends = "; ".join(
            f"{variant.name} ends at {255 * rows[-1]['eps_mean']:.1f}" for variant, rows in curves
        )
        drawings.append(
            Drawing(
                number=5,
                stem=f"figure-5-mean-{group.stem}",
                title="Mean ε over epochs",
                caption=f"{group.name}; mean over all training samples, one run per method.",
                alt=f"Line chart of the mean radius by epoch. {ends}, in units of 1/255.",
                figure=figure,
            )
        )
    if (chosen := adaptive(group)) is not None and len(chosen[1].snapshots) > 1:
        drawings.append(_draw_samples(group, *chosen))
    return drawings


def _draw_samples(group: Group, variant: Variant, run: RunRecord) -> Drawing:
    epochs = list(run.snapshots)
    radii = np.stack([load_radii(path) for path in run.snapshots.values()])
    samples = np.random.default_rng(SAMPLES_SEED).choice(
        radii.shape[1], min(3, radii.shape[1]), replace=False
    )
    figure, axes = blank()
    for sample, colour, dash, marker in zip(
        sorted(samples), (BLUE, ORANGE, GREEN), LINES, MARKERS, strict=False
    ):
        axes.plot(
            epochs,
            radii[:, sample],
            color=colour,
            linestyle=dash,
            marker=marker,
            ms=4,
            lw=1.8,
            label=f"sample {sample}",
        )
    axes.set(xlabel="epoch", ylabel="ε (1/255)")
    _from_zero(axes)
    legend(axes)
    ends = ", ".join(f"sample {s} at {radii[-1, s]:.1f}" for s in sorted(samples))
    return Drawing(
        number=5,
        stem=f"figure-5-samples-{group.stem}",
        title="ε of three samples over epochs",
        caption=(
            f"{group.name}, {variant.name}, seed {run.seed}. The samples are a random draw without replacement"
            f" (numpy's default generator, seed {SAMPLES_SEED}); points are snapshots."
        ),
        alt=f"Line chart of the radius of three training samples by epoch; they end with {ends} /255.",
        figure=figure,
    )


def _from_zero(axes: Axes) -> None:
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])


def draw_histograms(group: Group) -> list[Drawing]:
    """Figure 8 for every variant with radii of its own."""
    drawings = []
    for variant in group.variants:
        if (run := own_radii(variant)) is None:
            continue
        last = load_radii(list(run.snapshots.values())[-1])
        drawings.append(
            Drawing(
                number=8,
                stem=f"figure-8-{group.stem}-{variant.key}",
                title="Distribution of ε at snapshots of the training",
                caption=f"{group.name}, {variant.name}, seed {run.seed}; all {len(last):,} training samples.",
                alt=(
                    f"Histograms of the radii. In the last, mean {last.mean():.1f}, standard deviation"
                    f" {last.std():.1f}, from {last.min():.1f} to {last.max():.1f}, in units of 1/255."
                ),
                figure=histograms(run.snapshots),
            )
        )
    return drawings


def histograms(snapshots: dict[int, Path], *, title: str | None = None) -> Figure:
    """The radii at up to four epochs, in percent of the training samples."""
    figure, axes = blank(title)
    epochs = list(snapshots)
    at = np.linspace(0, len(epochs) - 1, min(SNAPSHOTS, len(epochs))).round().astype(int)
    radii = {epochs[i]: load_radii(snapshots[epochs[i]]) for i in at}
    every = np.concatenate(list(radii.values()))
    low, high = every.min(), every.max()
    axes.set(xlabel="ε (1/255)", ylabel="training samples (%)")
    equal = {epoch: values for epoch, values in radii.items() if np.ptp(values) == 0}
    if len(equal) == len(radii):
        _equal_bars(figure, axes, equal)
        return figure
    # Radii move in steps of beta * gamma: with more bins than values the bars would form a comb.
    bins = min(40, len(np.unique(every.round(1))))
    edges = np.linspace(low, high, bins + 1)
    shades: Sequence[str] = sequence(len(radii))
    for (epoch, values), shade in zip(radii.items(), shades, strict=True):
        if epoch in equal:
            # As a bar of 100 % it would make all other epochs too small to see: it leads out of the figure.
            label = f"epoch {epoch} (all {len(values):,} at {values[0]:.1f})"
            half = max((high - low) / bins, 0.02 * (high - low)) / 2
            axes.axvspan(values[0] - half, values[0] + half, color=shade, alpha=0.35, lw=0)
            axes.axvline(values[0], color=shade, lw=1.8, linestyle="--", label=label)
            continue
        share = 100 * np.histogram(values, edges)[0] / len(values)
        label = f"epoch {epoch} (mean {values.mean():.1f}, std {values.std():.1f})"
        axes.stairs(share, edges, color=shade, lw=1.8, label=label)
    axes.set_ylim(bottom=0)
    not_below_zero(axes)
    legend(axes)
    return figure


def _equal_bars(figure: Figure, axes: Axes, radii: dict[int, np.ndarray]) -> None:
    """Epochs after which all samples have the same radius: a bar of 100 % for each radius, with how many samples."""
    at: dict[float, list[int]] = {}
    for epoch, values in radii.items():
        at.setdefault(float(values[0]), []).append(epoch)
    # From 0, and as far beyond the largest as that is from 0: with no spread there is no other scale.
    right = 2 * max(at) or 1.0
    width = min([right / 20, *(0.8 * gap for gap in np.diff(sorted(at)))])
    for (radius, epochs), shade in zip(at.items(), sequence(len(at)), strict=True):
        listed = f"epoch{'' if len(epochs) == 1 else 's'} {', '.join(map(str, epochs))}"
        count = f"{len(radii[epochs[0]]):,}"
        label = f"{listed} (all {count} at {radius:.1f})"
        bar = axes.bar(radius, 100, width=width, color=shade, label=label)
        if len(at) == 1:
            axes.bar_label(bar, [f"{count} samples"], padding=2, color=INK)
    axes.set_xlim(0, right)
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))
    legend_above(figure, axes)
