"""A model with known radii, and a small network."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above 0.5: an image x of class 1 falls at the radius mean(x) - 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1).mean(1) - 0.5
        return torch.stack([-margin, margin], 1)


@pytest.fixture
def threshold() -> Threshold:
    return Threshold()


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    ]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="session")
def first_images(cifar10_npz: Path) -> tuple[Tensor, Tensor]:
    """The first 100 test images of CIFAR-10, float32 in [0, 1], and their classes."""
    with np.load(cifar10_npz) as arrays:
        images, labels = (torch.from_numpy(arrays[name][:100]) for name in ("x_test", "y_test"))
    return images.permute(0, 3, 1, 2).float().div(255).contiguous(), labels


@pytest.fixture(scope="session")
def resnet4b(real_data: Path) -> nn.Module:
    return runpy.run_path(str(real_data / "nets.py"))["load"]("resnet4b")
