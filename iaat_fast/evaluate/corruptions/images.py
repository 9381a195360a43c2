"""`CorruptedImages`: what every source of corrupted images gives, whichever files or library they come from."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor


class ImageSequence(Protocol):
    """Images by sample number, uint8 [H, W, C]; reading one may raise OSError or ValueError."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


class CorruptedImages(Protocol):
    """The same samples under several corruptions, each at severities 1 to 5."""

    @property
    def origin(self) -> Literal["official", "generated"]:
        """The published files, or images that were corrupted here."""

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions that can be measured."""

    @property
    def missing(self) -> dict[str, str]:
        """The corruptions that belong here and cannot be measured, and why not."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], the samples' classes."""

    @property
    def normalised(self) -> bool:
        """Whether AlexNet's errors on ImageNet-C are a measure for these images."""

    def images(self, name: str, severity: int) -> ImageSequence:
        """The N samples under one corruption, in the order of `labels`."""
