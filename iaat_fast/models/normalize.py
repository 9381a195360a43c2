"""Normalisation as the first layer of a model, so that attacks see plain [0, 1] pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

# Mean and standard deviation per channel over the training images, on the [0, 1] scale. CIFAR-10's
# are those of the IAAT authors' code, CIFAR-100's and ImageNet's the usual ones, the digits' measured.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.305,), (0.376,)),
    "cifar10": (
        (125.3 / 255, 123.0 / 255, 113.9 / 255),
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@torch.fx.wrap
def normalize(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(x - mean) / std by channel, for x [N, C, H, W] and mean and std [C].

    Raises:
        ValueError: x has another number of channels; broadcasting would otherwise turn a grey image
            into a coloured one unasked. `torch.fx.wrap` keeps the test out of symbolic traces,
            which cannot hold it.
    """
    if x.dim() != 4 or x.shape[1] != len(mean):
        raise ValueError(
            f"x: expected images [N, {len(mean)}, H, W], got shape {list(x.shape)} (the number of "
            "channels is chosen when the model is built)"
        )
    return (x - mean[:, None, None]) / std[:, None, None]


class Normalize(nn.Module):
    """Subtract `mean` and divide by `std`, each [C], held as buffers so part of a checkpoint if `persistent`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, persistent: bool = True
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"std: expected {len(mean)} values as in mean, got {list(std)}")
        if not all(value > 0 for value in std):
            raise ValueError(f"std: expected values above 0, got {list(std)}")
        self.register_buffer("mean", torch.tensor(mean), persistent)
        self.register_buffer("std", torch.tensor(std), persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalize(x, self.mean, self.std)
