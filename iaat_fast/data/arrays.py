"""Images and labels as tensors or numpy arrays: checks of their form, and float images as samples (`FloatSplit`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iaat_fast import validate
from iaat_fast.data.splits import unit_range

_CHANNELS = (1, 3)  # of grey and RGB images
_FORMS = "uint8 [N, H, W, C] or floats [N, C, H, W] in [0, 1]"


@dataclass(frozen=True)
class FloatSplit:
    """Float images with their labels; the images stay on their device, batches of them go to that of the labels.

    Args:
        images: floating point [N, C, H, W], in [0, 1].
        labels: int64 [N], class numbers from 0.

    Raises:
        TypeError, ValueError: another dtype, number of dimensions or length, pixels beyond [0, 1], or no images.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or not self.images.is_floating_point():
            raise ValueError(
                f"images: {self.images.dtype} {list(self.images.shape)}, expected floats [N, C, H, W]"
            )
        check_range("images", self.images)
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: {self.labels.dtype} {list(self.labels.shape)}, expected int64 [{len(self.images)}], "
                "one per image"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return self.images.shape[1]

    def to(self, device: torch.device | str) -> FloatSplit:
        """The same samples, of which batches go to `device`."""
        return self._with(self.images, self.labels.to(device))

    def first(self, n: int) -> FloatSplit:
        """The first `n` samples, all of them where there are fewer; a view, not a copy."""
        validate.integer("n", n, 1)
        return self._with(self.images[:n], self.labels[:n])

    def identity(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Images and labels."""
        yield "images", self.images
        yield "labels", self.labels

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """See `Samples.gather`."""
        images = self.images.index_select(0, index.to(self.images.device))
        return images.to(self.labels.device, torch.float32).contiguous()

    @classmethod
    def _with(cls, images: torch.Tensor, labels: torch.Tensor) -> FloatSplit:
        # Without __init__, since the pixels have been checked already.
        made = object.__new__(cls)
        object.__setattr__(made, "images", images)
        object.__setattr__(made, "labels", labels)
        return made


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """A tensor or numpy array as a tensor, without a copy if its strides allow it."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: {type(value).__name__}, expected a tensor or a numpy array")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not writable")  # nor is it written to
            return torch.from_numpy(value if min(value.strides, default=0) >= 0 else value.copy())
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: numpy {value.dtype}, expected a dtype that torch has") from error


def check_images(name: str, images: torch.Tensor, form: str = _FORMS) -> None:
    """Raise TypeError or ValueError unless these are images, at least one, of one of the two forms, unambiguously."""
    shape = list(images.shape)
    whole = images.dtype == torch.uint8
    if not whole and not images.is_floating_point():
        raise TypeError(f"{name}: {images.dtype}, expected {form}")
    if images.dim() != 4:
        raise ValueError(f"{name}: shape {shape}, expected {form}")
    if not images.numel():
        raise ValueError(f"{name}: no images, expected at least 1")
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        made = (
            "data.Split (uint8 [N, H, W, C])" if whole else "data.FloatSplit (floats [N, C, H, W])"
        )
        raise ValueError(
            f"{name}: shape {shape}, whose channels may be first or last; expected {made}, which says where"
        )
    if whole and first:
        raise ValueError(
            f"{name}: uint8 {shape} looks like [N, C, H, W], expected [N, H, W, C]: permute(0, 2, 3, 1)"
        )
    if not whole and last:
        raise ValueError(
            f"{name}: floats {shape} look like [N, H, W, C], expected [N, C, H, W]: permute(0, 3, 1, 2)"
        )
    if not whole:
        check_range(name, images)


def check_range(name: str, images: torch.Tensor) -> None:
    """Raise ValueError if float pixels are outside [0, 1] by more than rounding."""
    if not images.numel() or images.device.type == "meta":
        return
    low, high = (float(value) for value in torch.aminmax(images))
    slack = max(1e-5, 2 * torch.finfo(images.dtype).eps)
    if low >= -slack and high <= 1 + slack:
        return
    likely = ""
    if low >= 0 and 1.5 < high <= 255:
        likely = "; divide by 255?"
    elif low < -slack:
        likely = "; normalisation belongs in the model: models.normalized"
    raise ValueError(f"{name}: values from {low:.6g} to {high:.6g}, expected [0, 1]{likely}")


def as_labels(y: Any, images: int) -> torch.Tensor:
    """Labels as int64 [N], one per image.

    Raises:
        TypeError, ValueError: they are one-hot, of another length, not whole numbers, or below 0.
    """
    if isinstance(y, Sequence) and not isinstance(y, str):
        try:
            y = torch.tensor(y) if len(y) else torch.zeros(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError("y: not a sequence of numbers, expected the classes, from 0") from error
    labels = as_tensor("y", y)
    shape = list(labels.shape)
    if labels.dim() == 2 and shape[1] > 1:
        raise ValueError(
            f"y: shape {shape}, expected [{images}], class numbers (of one-hot labels y.argmax(1))"
        )
    if shape != [images]:
        raise ValueError(f"y: shape {shape}, expected [{images}], one label per image")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"y: {labels.dtype}, expected whole numbers, the classes from 0")
    labels = labels.to(torch.int64)
    if images and labels.device.type != "meta" and int(labels.min()) < 0:
        raise ValueError(f"y: {int(labels.min())}, expected a class >= 0")
    return labels


def float_batch(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images of either form as contiguous float32 [B, C, H, W] in [0, 1] on a device."""
    if images.dtype == torch.uint8:
        return unit_range(images.to(device).permute(0, 3, 1, 2))
    return images.to(device, torch.float32).contiguous()
