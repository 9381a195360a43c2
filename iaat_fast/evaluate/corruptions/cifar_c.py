"""CIFAR-10-C and CIFAR-100-C as published: a folder with one .npy for each corruption, and labels.npy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from iaat_fast.data import Samples
from iaat_fast.evaluate.corruptions.base import ALL, SEVERITIES, ImageSequence, image_shape
from iaat_fast.validate import one_line

LABELS = "labels.npy"


class CifarC:
    """The published files of CIFAR-10-C or CIFAR-100-C, read as they are needed (memory-mapped).

    A corruption is `<name>.npy`, uint8 [5 B, H, W, C]: the B test images at severity 1, then at severity 2, and so
    on (B is 10,000 in the published sets); `labels.npy` holds the 5 B labels. The first len(split) images of each
    severity are taken.

    Args:
        folder: where the files are.
        split: the test split that was corrupted.

    Raises:
        FileNotFoundError: `labels.npy` or every corruption is missing or damaged.
        ValueError: the labels are not those of `split`.

    A corruption whose file is missing, short or unreadable is left out and named in `missing`.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """

    origin: Literal["official"] = "official"
    normalised = False

    def __init__(self, folder: Path, split: Samples) -> None:
        self.labels: Tensor = split.labels.cpu()
        total = len(_agreeing_labels(folder / LABELS, self.labels.numpy()))
        self._block = total // len(SEVERITIES)
        expected = (total, *image_shape(split))
        self._arrays: dict[str, np.ndarray] = {}
        self.missing: dict[str, str] = {}
        for name in ALL:
            try:
                self._arrays[name] = _images(folder / f"{name}.npy", expected)
            except (OSError, ValueError) as error:
                self.missing[name] = _reason(error)
        if not self._arrays:
            first, reason = next(iter(self.missing.items()))
            raise FileNotFoundError(
                f"{folder}: holds none of the {len(ALL)} corruptions; {first}.npy: {reason}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def images(self, name: str, severity: int) -> ImageSequence:
        start = self._block * (severity - 1)
        return self._arrays[name][start : start + len(self.labels)]


def _agreeing_labels(path: Path, wanted: np.ndarray) -> np.ndarray:
    """The labels in `path`, in five blocks that all start with `wanted`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; without it nothing says what the images show")
    try:
        labels = _load(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES):
        raise ValueError(
            f"{path}: expected integers [5 times the test images], got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    blocks = labels.reshape(len(SEVERITIES), -1)
    if blocks.shape[1] < len(wanted):
        raise ValueError(
            f"{path}: has {blocks.shape[1]} images per severity, the test split has {len(wanted)}; "
            f"take no more than are corrupted (--limit {blocks.shape[1]})"
        )
    different = int((blocks[:, : len(wanted)] != wanted).any(0).sum())
    if different:
        raise ValueError(
            f"{path}: {different} of {len(wanted)} labels are not those of the test split: these "
            "are the corruptions of another data set"
        )
    return labels


def _images(path: Path, expected: tuple[int, ...]) -> np.ndarray:
    array = _load(path)
    if array.ndim and len(array) != expected[0]:
        raise ValueError(f"short: {len(array)} images, {LABELS} has {expected[0]} labels")
    if array.dtype != np.uint8 or array.shape != expected:
        raise ValueError(f"expected uint8 {list(expected)}, got {array.dtype} {list(array.shape)}")
    return array


def _load(path: Path) -> np.ndarray:
    """The array in a file, memory-mapped; an array of objects is refused, never unpickled."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError) as error:
        raise ValueError(f"unreadable or cut short: {one_line(error)}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("an archive of arrays, expected a single one")
    return array


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError):
        return f"unreadable: {error.strerror}"
    return str(error)
