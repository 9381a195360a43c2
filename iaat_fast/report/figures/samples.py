"""Training images by sample number, and a grid of them with a line of text below each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from iaat_fast import data as datasets
from iaat_fast.report.figures.style import INK
from iaat_fast.report.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class TrainingImages:
    """The training images of runs, each data set loaded once.

    Args:
        path: where they lie now; None: where the runs' configurations say.
        missing: what could not be shown and why, for the reader of the report.
    """

    path: str | None = None
    missing: list[str] = field(default_factory=list)
    _loaded: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def of(self, run: RunRecord, size: int, wanted_for: str) -> datasets.ImageData | None:
        """The data of a run, or None with an entry in `missing`; nothing is downloaded.

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
        """Keep that something is missing."""
        self.missing.append(f"{what}: not drawn, {why}")


def pictures(data: datasets.ImageData, numbers: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The training samples `numbers`, int [N], as float [N, H, W, 3] in [0, 1], and their labels."""
    x, y = datasets.fetch(data.train, torch.from_numpy(numbers.astype(np.int64)))
    return to_picture(x), y.tolist()


LARGEST = 96
"""Pixels on a side beyond which images are shrunk: they are shown at about half of that."""


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
        axes: where; its axes are switched off.
        images: float [H, W, 3] in [0, 1].
        labels: of as many lines each.
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
