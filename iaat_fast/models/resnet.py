"""The CIFAR ResNet and the wide ResNet of adversarial training, both with a 3x3 stem for 32x32 images."""

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
    """He et al. (2016), arXiv 1512.03385: four stages of w, 2w, 4w, 8w channels and n basic blocks each: depth 8n + 2.

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
            raise ValueError(f"depth: {depth}, expected 8n + 2 (10, 18, 26, ...)")
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


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; where the shape changes, a 1x1 shortcut.

    The 1x1 shortcut starts after the first ReLU, the identity shortcut before the first BatchNorm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = conv1x1(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis (2016), arXiv 1605.07146: three stages of 16w, 32w, 64w channels and n pre-activation
    blocks each, depth 6n + 2.

    w is the widening factor. Depth 32, w = 10 is Madry et al.'s "w32-10"; TRADES counts the
    shortcuts as well and calls the same network WRN-34-10 (46,160,474 parameters at 10 classes).
    There is no dropout.

    The network in IAAT's released code is another: its BatchNorm layers have no scale and shift, the stem has 16w
    channels, shortcuts are averaged (3x3) and filled up with zero channels, and the logits are a 1x1 convolution with a
    BatchNorm of its own, averaged over the positions. It has no 1x1 shortcuts and no linear layer.
    """

    def __init__(
        self,
        normalization: nn.Module,
        in_channels: int,
        num_classes: int,
        width: int = 10,
        depth: int = 32,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth: {depth}, expected 6n + 2 (8, 14, 20, 26, 32, ...)")
        self.normalize = normalization
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = stage(PreActivationBlock, 16, 16 * width, blocks, stride=1)
        self.block2 = stage(PreActivationBlock, 16 * width, 32 * width, blocks, stride=2)
        self.block3 = stage(PreActivationBlock, 32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        he_initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(self.normalize(x))
        out = self.block3(self.block2(self.block1(out)))
        out = self.pool(torch.relu(self.bn1(out)))
        return self.fc(out.flatten(1))
