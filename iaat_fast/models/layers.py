"""What the networks share: normalisation as the first layer, convolutions, stages of blocks, initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from iaat_fast.models.narrow import VECTOR, NarrowConv2d

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
            into a coloured one.
    """
    # `torch.fx.wrap` keeps this test out of symbolic traces, which cannot hold it.
    if x.dim() != 4 or x.shape[1] != len(mean):
        raise ValueError(
            f"x: expected images [N, {len(mean)}, H, W], got shape {list(x.shape)} (the number of "
            "channels is chosen when the model is built)"
        )
    return (x - mean[:, None, None]) / std[:, None, None]


class Normalize(nn.Module):
    """Subtract `mean` and divide by `std`, each [C]; they are buffers, and in the state dict if `persistent`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, persistent: bool = True
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"std: {list(std)}, expected {len(mean)} values as in mean")
        if not all(value > 0 for value in std):
            raise ValueError(f"std: {list(std)}, expected values above 0")
        self.register_buffer("mean", torch.tensor(mean), persistent)
        self.register_buffer("std", torch.tensor(std), persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalize(x, self.mean, self.std)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; without bias, as BatchNorm has its own."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias, as in bottlenecks and in shortcuts that change the shape."""
    layer = NarrowConv2d if stride > 1 and in_channels < VECTOR else nn.Conv2d
    return layer(in_channels, out_channels, 1, stride, bias=False)


def stage(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    channels: int,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    """A sequence of `blocks` blocks; the first changes the shape, to `channels` and by `stride`."""
    return nn.Sequential(
        block(in_channels, channels, stride),
        *(block(channels, channels, 1) for _ in range(blocks - 1)),
    )


def he_initialize(model: nn.Module) -> None:
    """He et al. (2015): convolution weights normal with variance 2 / fan out, biases 0.

    Linear weights keep torch's default, BatchNorm its scale 1 and shift 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
