"""Figures 2 and 6: training samples with small and with large radii."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from iaat_fast.data import ImageData
from iaat_fast.report import naming
from iaat_fast.report.figures.drawing import Drawing
from iaat_fast.report.figures.radii import adaptive, load_radii
from iaat_fast.report.figures.samples import TrainingImages, grid, pictures
from iaat_fast.report.figures.style import INK
from iaat_fast.report.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTREMES = 12
"""Samples on either side of Figure 2."""

DRAWN, TAIL, SEED = 24, 0.05, 0
"""Figure 6: how many samples are drawn from either end, the share of all samples that is an end, and the seed."""


def draw_galleries(group: Group, images: TrainingImages) -> list[Drawing]:
    """Figure 2, the samples with the most extreme radii, and Figure 6, a draw from both ends."""
    if (chosen := adaptive(group)) is None:
        return []
    variant, run = chosen
    epoch, path = list(run.snapshots.items())[-1]
    radii = load_radii(path)
    what = f"Figures 2 and 6 of {group.name}"
    data = images.of(run, len(radii), what)
    if data is None:
        return []
    # Stable: samples with the same radius stand by their number.
    order = np.argsort(radii, kind="stable")
    count = min(EXTREMES, len(order) // 2)
    tail = max(int(TAIL * len(order)), min(DRAWN, len(order) // 2))
    random = np.random.default_rng(SEED)
    drawn = [
        np.sort(random.choice(end, min(DRAWN, len(end)), replace=False))
        for end in (order[:tail], order[len(order) - tail :])
    ]
    whose = f"{group.name}, {variant.name}, seed {run.seed}, after {epoch} epochs"
    alt = (
        "Two galleries of training images, each with its class and radius below. Small radii from"
        " {0:.1f} to {1:.1f}, large ones from {2:.1f} to {3:.1f}, in units of 1/255."
    )
    drawings = []
    for number, ends, rule, shape in (
        (
            2,
            [order[:count], order[::-1][:count]],
            f"The {count} smallest and the {count} largest radii",
            (1, 2, 4),
        ),
        (
            6,
            drawn,
            f"A random draw (seed {SEED}) from the {tail:,} samples with the smallest radii"
            f" and the {tail:,} with the largest",
            (2, 1, 8),
        ),
    ):
        low, high = radii[ends[0]], radii[ends[1]]
        try:
            figure = _gallery(data, ends, radii, *shape)
        # Image files are decoded now, and may be gone or damaged since.
        except (ValueError, RuntimeError, OSError) as error:
            images.lack(what, " ".join(str(error).split()))
            return []
        drawings.append(
            Drawing(
                number=number,
                stem=f"figure-{number}-{group.stem}",
                title="Training samples with small and with large ε",
                caption=f"{whose}. {rule}, in units of 1/255.",
                alt=alt.format(low.min(), low.max(), high.min(), high.max()),
                figure=figure,
            )
        )
    return drawings


def _gallery(
    data: ImageData,
    ends: list[np.ndarray],
    radii: np.ndarray,
    rows: int,
    panels: int,
    columns: int,
) -> Figure:
    from matplotlib.figure import Figure

    size = (8.6, 4.2) if panels == 2 else (8.6, 8.8)
    figure = Figure(figsize=size, layout="constrained")
    for axes, numbers, title in zip(
        figure.subplots(rows, panels).flat, ends, ("small ε", "large ε"), strict=True
    ):
        shown, labels = pictures(data, numbers)
        below = [
            f"{naming.class_name(data.name, label)}\nε = {radii[number]:.1f}"
            for label, number in zip(labels, numbers, strict=True)
        ]
        grid(axes, list(shown), below, columns=columns)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return figure
