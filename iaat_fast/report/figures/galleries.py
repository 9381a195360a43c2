"""Figures 2 and 6: training samples with small and with large radii; also loads and draws images for Figure 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from iaat_fast import data as datasets
from iaat_fast.report import naming
from iaat_fast.report.figures.drawing import INK, Drawing
from iaat_fast.report.figures.radii import adaptive, load_radii
from iaat_fast.report.groups import Group
from iaat_fast.report.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXTREMES = 12
"""Samples with small, and samples with large radii in Figure 2."""

DRAWN, TAIL, SEED = 24, 0.05, 0
"""Figure 6: samples drawn from either end, the share of all samples that counts as an end, and the seed."""


def draw_galleries(group: Group, images: TrainingImages) -> list[Drawing]:
    """Figure 2, the samples with the smallest and largest radii, and Figure 6, random samples of both ends."""
    if (chosen := adaptive(group)) is None:
        return []
    variant, run = chosen
    epoch, path = list(run.snapshots.items())[-1]
    radii = load_radii(path)
    what = f"Figures 2 and 6 of {group.name}"
    data = images.of(run, len(radii), what)
    if data is None:
        return []
    # Stable: samples with the same radius are in the order of their numbers.
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
    for number, title, ends, panels, rule, shape in (
        (
            2,
            "The training samples with the smallest and with the largest ε",
            [order[:count], order[::-1][:count]],
            ("smallest ε", "largest ε"),
            f"The {count} smallest and the {count} largest radii",
            (1, 2, 4),
        ),
        (
            6,
            "Random training samples with small and with large ε",
            drawn,
            ("small ε, drawn at random", "large ε, drawn at random"),
            f"A random draw (seed {SEED}) from the {tail:,} samples with the smallest radii"
            f" and the {tail:,} with the largest",
            (2, 1, 8),
        ),
    ):
        low, high = radii[ends[0]], radii[ends[1]]
        try:
            figure = _gallery(data, ends, panels, radii, *shape)
        # Image files are decoded only now, and may be missing or damaged.
        except (ValueError, RuntimeError, OSError) as error:
            images.lack(what, " ".join(str(error).split()))
            return []
        drawings.append(
            Drawing(
                number=number,
                stem=f"figure-{number}-{group.stem}",
                title=title,
                caption=f"{whose}. {rule}, in units of 1/255.",
                alt=alt.format(low.min(), low.max(), high.min(), high.max()),
                figure=figure,
            )
        )
    return drawings


def _gallery(
    data: datasets.ImageData,
    ends: Sequence[np.ndarray],
    titles: Sequence[str],
    radii: np.ndarray,
    rows: int,
    panels: int,
    columns: int,
) -> Figure:
    from matplotlib.figure import Figure

    size = (8.6, 4.2) if panels == 2 else (8.6, 8.8)
    figure = Figure(figsize=size, layout="constrained")
    for axes, numbers, title in zip(figure.subplots(rows, panels).flat, ends, titles, strict=True):
        shown, labels = pictures(data, numbers)
        below = [
            f"{naming.class_name(data.name, label)}\nε = {radii[number]:.1f}"
            for label, number in zip(labels, numbers, strict=True)
        ]
        grid(axes, list(shown), below, columns=columns)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return figure


@dataclass
class TrainingImages:
    """The training images of runs, each data set loaded once.

    Args:
        path: where they are now; None: as in the runs' configurations.
        missing: texts that say what could not be shown, and why.
    """

    path: str | None = None
    missing: list[str] = field(default_factory=list)
    _loaded: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def of(self, run: RunRecord, size: int, wanted_for: str) -> datasets.ImageData | None:
        """The data set of a run, or None with an entry in `missing`; nothing is downloaded.

        Args:
            run: whose data.
            size: how many training samples the run has radii for.
            wanted_for: the figures that need them, `Figures 2 and 6`.
        """
        name, limit = run.config["data.name"], run.config.get("data.limit")
        path = self.path if self.path is not None else run.config.get("data.path")
        on_bad = run.config.get("data.on_bad_image", "stop")
        key = (name, path, limit, on_bad)
        try:
            if name not in datasets.NAMES:
                raise ValueError(f"the images of {run.name} came from Python")
            if key not in self._loaded:
                self._loaded[key] = datasets.load(
                    name, path, limit=limit, download=False, on_bad_image=on_bad
                )
            data: datasets.ImageData = self._loaded[key]
            if len(data.train) != size:
                raise ValueError(
                    f"{path or name} has {len(data.train)} training images, {run.name} has radii of {size}"
                )
        except (ValueError, OSError) as error:
            self.lack(wanted_for, " ".join(str(error).split()))
            return None
        return data

    def lack(self, what: str, why: str) -> None:
        """Add an entry to `missing`."""
        self.missing.append(f"{what}: not drawn, {why}")


def pictures(data: datasets.ImageData, numbers: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The training samples `numbers`, int [N], as float [N, H, W, 3] in [0, 1], and their labels."""
    x, y = datasets.fetch(data.train, torch.from_numpy(numbers.astype(np.int64)))
    return to_picture(x), y.tolist()


LARGEST = 96
"""Images with more pixels per side are shrunk to this; they are shown at about half of it."""


def to_picture(x: torch.Tensor) -> np.ndarray:
    """Images [N, C, H, W] with one channel or three as [N, H, W, 3], large ones shrunk."""
    if max(x.shape[2:]) > LARGEST:
        x = torch.nn.functional.adaptive_avg_pool2d(x, LARGEST)
    array = x.detach().cpu().permute(0, 2, 3, 1).numpy()
    return np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array


LINE = 0.22
"""Height of a line of text below an image, in widths of an image."""
GAP = 0.12


def grid(
    axes: Axes,
    images: Sequence[np.ndarray],
    labels: Sequence[str],
    *,
    columns: int,
    colours: Sequence[str] | None = None,
) -> None:
    """Draw images row by row, each with its label below.

    Args:
        axes: to draw into; its axis lines are switched off.
        images: float [H, W, 3] in [0, 1].
        labels: one per image.
        columns: images per row.
        colours: of the labels.
    """
    height = 1 + GAP + LINE * (1 + max(label.count("\n") for label in labels))
    rows = -(-len(images) // columns)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = (number % columns) * (1 + GAP), -(number // columns) * height
        axes.imshow(image, extent=(left, left + 1, top - 1, top), interpolation="none")
        axes.text(
            left + 0.5,
            top - 1.04,
            label,
            ha="center",
            va="top",
            fontsize=7,
            color=colours[number] if colours is not None else INK,
            linespacing=1.05,
        )
    axes.set_xlim(0, columns * (1 + GAP) - GAP)
    axes.set_ylim(-rows * height, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.set_axis_off()
