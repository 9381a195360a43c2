"""Networks and images that the attacks' tests share."""

from __future__ import annotations

import importlib.util
import io
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
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def y(net: nn.Sequential, x: Tensor) -> Tensor:
    """What the network predicts, so that an attack has something to change."""
    return net(x).argmax(1)


@pytest.fixture(scope="session")
def first_thousand(real_data: Path) -> tuple[Tensor, Tensor]:
    """The first 1,000 test images of CIFAR-10, float32 in [0, 1], and their classes; the pack holds strips of 100."""
    image = pytest.importorskip("PIL.Image")
    with np.load(real_data / "cifar10-test.npz") as pack:
        blob, offsets, labels = pack["blob"].tobytes(), pack["offsets"], pack["labels"]
    coded = (blob[offsets[i] : offsets[i + 1]] for i in range(10))
    strips = [np.asarray(image.open(io.BytesIO(strip)).convert("RGB")) for strip in coded]
    images = np.concatenate(strips).reshape(-1, 32, 32, 3)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous()
    return x, torch.from_numpy(labels[:1000].astype(np.int64))


@pytest.fixture(scope="session")
def cifar10(first_thousand: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The first 200 of them."""
    images, labels = first_thousand
    return images[:200], labels[:200]


@pytest.fixture(scope="session")
def checkpoint(real_data: Path) -> Callable[[str], nn.Module]:
    """`nets.load` of the real data: a trained network by name."""
    spec = importlib.util.spec_from_file_location("nets", real_data / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    return nets.load
