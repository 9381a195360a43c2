"""The ImageNet ResNet: He et al. (2016), arXiv 1512.03385, with the stride of a bottleneck in its 3x3 convolution."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from iaat_fast import validate
from iaat_fast.models.layers import conv1x1, conv3x3, he_initialize, stage

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks of the four stages by depth; bottlenecks from depth 50."""
EXPANSION = 4


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block whose input and output differ in shape; None if they do not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm and a shortcut, a quarter of `channels` inside."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        inside = channels // EXPANSION
        self.conv1 = conv1x1(in_channels, inside)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = conv3x3(inside, inside, stride)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = conv1x1(inside, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    """A 7x7 stem and four stages of w, 2w, 4w, 8w channels (bottlenecks: of 4 times as many) for 224x224 images.

    With w = 64 and 1,000 classes it is torchvision's `resnetN`, in arithmetic and in the names of its state dict, if
    `normalization` adds none (`Normalize(..., persistent=False)`): public checkpoints load here, and its own load into
    torchvision's. ResNet-50 has 25,557,032 parameters.

    Raises:
        ValueError: a depth that is not in `BLOCKS`.
    """

    def __init__(
        self,
        normalization: nn.Module,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        depth: int = 50,
    ) -> None:
        super().__init__()
        validate.choice("depth", depth, BLOCKS)
        bottlenecks = depth >= 50
        block = Bottleneck if bottlenecks else BasicBlock
        out = [width * 2**k * (EXPANSION if bottlenecks else 1) for k in range(4)]
        make = partial(stage, block)
        self.normalize = normalization
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first, second, third, fourth = BLOCKS[depth]
        self.layer1 = make(width, out[0], first, stride=1)
        self.layer2 = make(out[0], out[1], second, stride=2)
        self.layer3 = make(out[1], out[2], third, stride=2)
        self.layer4 = make(out[2], out[3], fourth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(out[3], num_classes)
        he_initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(x)))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(self.avgpool(out).flatten(1))
