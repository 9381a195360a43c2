"""What all sources of corrupted images share: the names of corruptions, their interface, reading a clean image."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from iaat_fast.data import Samples, fetch

ALEXNET_ERRORS: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error on ImageNet-C, the mean of the five severities (Hendrycks and Dietterich 2019)."""

MAIN: tuple[str, ...] = tuple(ALEXNET_ERRORS)
"""The 15 corruptions over which ImageNet-C's mCE (mean corruption error) is taken."""

ALL: tuple[str, ...] = (*MAIN, "speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 19 corruptions of CIFAR-10-C and CIFAR-100-C."""

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)


class ImageSequence(Protocol):
    """Images by sample number, uint8 [H, W, C]; reading one may raise OSError or ValueError."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


class CorruptedImages(Protocol):
    """The same samples under several corruptions, each at severities 1 to 5."""

    @property
    def origin(self) -> Literal["official", "generated"]:
        """Whether these are the published files, or images that were corrupted here."""

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions that can be measured."""

    @property
    def missing(self) -> dict[str, str]:
        """The corruptions that should be here and cannot be measured, each with the reason."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], the samples' classes."""

    @property
    def normalised(self) -> bool:
        """Whether mCE applies, which divides by AlexNet's errors on ImageNet-C."""

    def images(self, name: str, severity: int) -> ImageSequence:
        """The N samples under one corruption, in the order of `labels`."""


def pixels(split: Samples, number: int) -> np.ndarray:
    """Sample `number`, uint8 [H, W, C]."""
    x, _ = fetch(split, torch.tensor([number], device=split.labels.device))
    # x is pixel / 255 in float32: times 255, the nearest integer is the pixel.
    return (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def image_shape(split: Samples) -> tuple[int, int, int]:
    """H, W, C of the images."""
    height, width, channels = pixels(split, 0).shape
    return height, width, channels
