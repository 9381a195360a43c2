"""Networks and images that the attacks' tests share."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def net() -> nn.Sequential:
    """A ReLU network over [0, 1] images [N, 3, 8, 8] with 10 classes, in evaluation mode."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def bn_net() -> nn.Sequential:
    """Convolution, BatchNorm and dropout, with running statistics that are not those of any batch."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(288, 10),
    )
    net[1].running_mean.uniform_(-0.2, 0.2)
    net[1].running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def y(net: nn.Sequential, x: Tensor) -> Tensor:
    """What the network predicts, so that an attack has something to change."""
    return net(x).argmax(1)


@pytest.fixture(scope="session")
def first_thousand(cifar10_npz: Path) -> tuple[Tensor, Tensor]:
    """The first 1,000 test images of CIFAR-10, float32 in [0, 1], and their classes."""
    with np.load(cifar10_npz) as arrays:
        images, labels = arrays["x_test"][:1000], arrays["y_test"][:1000]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255), torch.from_numpy(labels)


@pytest.fixture(scope="session")
def cifar10(first_thousand: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The first 200 of them, contiguous."""
    images, labels = first_thousand
    return images[:200].contiguous(), labels[:200]


@pytest.fixture(scope="session")
def checkpoint(real_data: Path) -> Callable[[str], nn.Module]:
    """`nets.load` of the real data: a trained network by name."""
    return runpy.run_path(str(real_data / "nets.py"))["load"]
