"""The containers of a data set: `Split` (images, labels) and `ImageData` (train, test)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Split:
    """Images with their labels, whole and on one device.

    Args:
        images: uint8 [N, H, W, C], pixel values 0..255.
        labels: int64 [N], class numbers from 0.

    Raises:
        ValueError: another dtype, number of dimensions or length, or tensors on two devices.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"images: expected uint8 [N, H, W, C], got {self.images.dtype} "
                f"{list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected int64 [{len(self.images)}], one per image, got "
                f"{self.labels.dtype} {list(self.labels.shape)}"
            )
        if self.labels.device != self.images.device:
            raise ValueError(
                f"labels: expected on the images' device {self.images.device}, "
                f"got {self.labels.device}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, n: int) -> Split:
        """The first `n` samples, all of them where there are fewer; a view, not a copy."""
        if n < 1:
            raise ValueError(f"n: expected at least 1 sample, got {n}")
        return Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class ImageData:
    """A data set: its name, its two splits and how many classes its labels name.

    Args:
        name: one of `iaat_fast.data.NAMES`.
        train: the split to train on.
        test: the split to measure on, of the same image shape.
        num_classes: labels of both splits are below it.
    """

    name: str
    train: Split
    test: Split
    num_classes: int

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with both splits on `device`."""
        return ImageData(self.name, self.train.to(device), self.test.to(device), self.num_classes)
