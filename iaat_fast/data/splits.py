"""The containers of a data set (`Samples`, `Split`, `ImageData`), the order of an epoch, batches by sample number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch

from iaat_fast import validate


class Samples(Protocol):
    """Images with their labels, numbered from 0: whole in memory (`Split`) or files of a folder (`FolderSplit`)."""

    @property
    def labels(self) -> torch.Tensor:
        """Class numbers, int64 [N], on the device on which batches are wanted."""

    @property
    def channels(self) -> int:
        """Channels of an image."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Self:
        """The same samples, with labels and fetched images on `device`."""

    def first(self, n: int) -> Self:
        """The samples 0 .. n-1, or all of them if there are fewer."""

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """The images of the sample numbers `index`, int64 [B], as `data.fetch` returns them."""

    def identity(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors whose hash identifies these samples, each with a name."""


@dataclass(frozen=True)
class Split:
    """Images with their labels, whole and on one device.

    Args:
        images: uint8 [N, H, W, C], pixel values 0..255.
        labels: int64 [N], class numbers from 0.

    Raises:
        ValueError: another dtype, number of dimensions or length, tensors on two devices, or images that look like
            [N, C, H, W].
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"images: {self.images.dtype} {list(self.images.shape)}, expected uint8 [N, H, W, C]"
            )
        if looks_like_nchw(self.images.shape):
            raise ValueError(
                f"images: {list(self.images.shape)} looks like [N, C, H, W], expected [N, H, W, C]: permute(0, 2, 3, 1)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: {self.labels.dtype} {list(self.labels.shape)}, expected int64 [{len(self.images)}], "
                "one per image"
            )
        if self.labels.device != self.images.device:
            raise ValueError(
                f"labels: on {self.labels.device}, expected on the images' device, {self.images.device}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return self.images.shape[3]

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, n: int) -> Split:
        """The first `n` samples, all of them where there are fewer; a view, not a copy."""
        validate.integer("n", n, 1)
        return Split(self.images[:n], self.labels[:n])

    def identity(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Images and labels."""
        yield "images", self.images
        yield "labels", self.labels

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """See `Samples.gather`."""
        images = self.images.index_select(0, index.to(self.images.device))
        return unit_range(images.permute(0, 3, 1, 2))


def looks_like_nchw(shape: Sequence[int]) -> bool:
    """Whether a shape of four dimensions is that of grey or RGB images with channels first, and not last."""
    return shape[1] in (1, 3) and shape[3] not in (1, 3)


def unit_range(planes: torch.Tensor) -> torch.Tensor:
    """uint8 pixels [B, C, H, W] as contiguous float32 in [0, 1]: pixel / 255, rounded once."""
    x = torch.empty(planes.shape, device=planes.device)
    x.copy_(planes)
    # By a tensor: on CUDA, torch divides by a Python number by multiplying with its reciprocal, which rounds twice.
    return x.div_(torch.full((1,), 255.0, device=planes.device))


@dataclass(frozen=True)
class ImageData:
    """A data set: its name, its two splits and its number of classes.

    Args:
        name: one of `iaat_fast.data.NAMES`.
        train: the split to train on.
        test: the split to measure on, of the same image shape.
        num_classes: labels of both splits are below it.

    Raises:
        ValueError: splits of different image shapes, or labels outside 0 .. num_classes-1. (Labels on a GPU are not
            checked: the host would wait for them.)
    """

    name: str
    train: Samples
    test: Samples
    num_classes: int

    def __post_init__(self) -> None:
        if isinstance(self.train, Split) and isinstance(self.test, Split):
            shape, other = self.train.images.shape[1:], self.test.images.shape[1:]
            if shape != other:
                raise ValueError(
                    f"test: images {list(other)}, expected {list(shape)} [H, W, C] as in train"
                )
        for part in ("train", "test"):
            labels = getattr(self, part).labels
            if labels.device.type != "cpu" or not len(labels):
                continue
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or highest >= self.num_classes:
                raise ValueError(
                    f"{part}: labels {lowest} .. {highest}, expected 0 .. {self.num_classes - 1}, below num_classes"
                )

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with both splits on `device`."""
        return ImageData(self.name, self.train.to(device), self.test.to(device), self.num_classes)


def epoch_order(n: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order in which epoch `epoch` visits `n` samples: a pure function of its arguments.

    No state is carried from epoch to epoch, so a resumed run gets its order without repeating the
    earlier ones, and every rank computes the same order.

    Returns:
        int64 [n] on the CPU, a permutation of 0 .. n-1.

    Raises:
        ValueError: a negative argument.
    """
    for name, value in (("n", n), ("seed", seed), ("epoch", epoch)):
        validate.integer(name, value, 0)
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def fetch(split: Samples, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the samples `index` as a float batch.

    Args:
        split: where to gather from.
        index: int64 [B], sample numbers, on any device.

    Returns:
        x float32 [B, C, H, W] in [0, 1] (pixel / 255), contiguous, and y int64 [B], both on the
        split's device.

    Raises:
        TypeError: `index` is not int64.
        ValueError: `index` is not [B].
        UnreadableImage: a file cannot be decoded; the message names it.
        IndexError: a number outside 0 .. len(split)-1 (if `index` is on the CPU; on a GPU the check
            would cost a synchronisation and is left to the gather).
    """
    _check_index(index, len(split))
    return split.gather(index), split.labels.index_select(0, index.to(split.labels.device))


def _check_index(index: torch.Tensor, size: int) -> None:
    if index.dtype != torch.int64:
        raise TypeError(f"index: {index.dtype}, expected int64")
    if index.dim() != 1:
        raise ValueError(f"index: {list(index.shape)}, expected shape [B]")
    if index.device.type == "cpu" and len(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise IndexError(f"index: {low} .. {high}, expected numbers in 0 .. {size - 1}")
