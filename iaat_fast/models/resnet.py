"""The CIFAR ResNet: He et al. (2016), arXiv 1512.03385, with a 3x3 stem for 32x32 images."""

from __future__ import annotations

import torch
from torch import nn

from iaat_fast.models.layers import conv1x1, conv3x3, he_initialize, stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                conv1x1(in_channels, channels, stride), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of w, 2w, 4w, 8w channels and n basic blocks each: depth 8n + 2.

    ResNet-18 is n = 2; with w = 64 and 10 classes it has 11,173,962 parameters. Attributes are
    named as in the CIFAR ResNet-18 in common use, so its checkpoints fit with `normalize` added.
    """

    def __init__(
        self,
        normalization: nn.Module,
        in_channels: int,
        num_classes: int,
        width: int = 64,
        depth: int = 18,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 8)
        if blocks < 1 or rest:
            raise ValueError(f"depth: expected 8n + 2 (10, 18, 26, ...), got {depth}")
        self.normalize = normalization
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(BasicBlock, width, width, blocks, stride=1)
        self.layer2 = stage(BasicBlock, width, 2 * width, blocks, stride=2)
        self.layer3 = stage(BasicBlock, 2 * width, 4 * width, blocks, stride=2)
        self.layer4 = stage(BasicBlock, 4 * width, 8 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * width, num_classes)
        he_initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(self.normalize(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(self.pool(out).flatten(1))
