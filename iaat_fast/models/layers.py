"""What the networks share: convolutions, stages of blocks, initialisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from iaat_fast.models.narrow import VECTOR, NarrowConv2d


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; without bias, as BatchNorm has its own."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """The convolution of a shortcut whose ends differ in shape."""
    layer = NarrowConv2d if stride > 1 and in_channels < VECTOR else nn.Conv2d
    return layer(in_channels, out_channels, 1, stride, bias=False)


def stage(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    channels: int,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    """`blocks` times `block(in_channels, channels, stride)`; the first changes the shape."""
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
