"""The small network of the `digits` preset: three convolutions and a linear layer."""

from __future__ import annotations

import torch
from torch import nn

from iaat_fast.models.layers import he_initialize


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions of w, 2w, 2w channels (w = 32 by default), the last two of stride 2.

    No BatchNorm, so attacks in train and in eval mode are the same. 8x8 images leave 2x2 positions
    before the linear layer; the features of larger ones are averaged down to 2x2.
    """

    def __init__(
        self, normalization: nn.Module, in_channels: int, num_classes: int, width: int
    ) -> None:
        super().__init__()
        self.normalize = normalization
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.linear = nn.Linear(2 * width * 4, num_classes)
        he_initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.conv1(self.normalize(x)))
        out = torch.relu(self.conv2(out))
        out = torch.relu(self.conv3(out))
        return self.linear(self.pool(out).flatten(1))
