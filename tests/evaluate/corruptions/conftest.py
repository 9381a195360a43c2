"""A set in CIFAR-10-C's layout, and a model whose accuracy on it is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iaat_fast.data import Split
from iaat_fast.evaluate.corruptions import ALL

SAMPLES, CLASSES = 20, 10


class ReadsThePixel(nn.Module):
    """Says the class that the first pixel's red names."""

    def forward(self, x: Tensor) -> Tensor:
        number = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(number % CLASSES, CLASSES).float()


@dataclass(frozen=True)
class Published:
    """All 19 corruptions of a split of 20 images: the first `right(name, severity)` are classified correctly."""

    folder: Path
    split: Split
    model: nn.Module

    def right(self, name: str, severity: int) -> int:
        return (3 * ALL.index(name) + 5 * severity) % (SAMPLES + 1)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLES, 4, 4, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    published = Published(tmp_path / "CIFAR-10-C", Split(images, labels), ReadsThePixel())
    published.folder.mkdir()
    np.save(published.folder / "labels.npy", np.tile(labels.numpy(), 5))
    for name in ALL:
        blocks = np.stack([images.numpy()] * 5)
        for severity in range(1, 6):
            wrong = slice(published.right(name, severity), None)
            blocks[severity - 1, wrong, 0, 0, 0] = (labels.numpy()[wrong] + 1) % CLASSES
        np.save(published.folder / f"{name}.npy", blocks.reshape(-1, 4, 4, 3))
    return published


@pytest.fixture
def split(published: Published) -> Split:
    return published.split


@pytest.fixture
def folder(published: Published) -> Path:
    return published.folder
