"""A data set and networks small enough that a whole training run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.data import ImageData, Split
from iaat_fast.train import FitResult, fit
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.overrides import override
from iaat_fast.train.presets import preset
from tests.train.same_run import Fit


@pytest.fixture
def tiny_data() -> ImageData:
    """Three classes of 6 x 6 grey images, noise with one bright third; 24 to train, 12 to test."""
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        labels = torch.arange(size) % 3
        images = torch.randint(0, 120, (size, 6, 6, 1), generator=generator, dtype=torch.uint8)
        for i, label in enumerate(labels.tolist()):
            images[i, 2 * label : 2 * label + 2] += 90
        return Split(images=images, labels=labels)

    return ImageData(name="tiny", train=split(24), test=split(12), num_classes=3)


@pytest.fixture
def tiny_model() -> Callable[[], nn.Module]:
    """Makes the same network each time: BatchNorm, and dropout that draws while it trains."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.LeakyReLU(),
                nn.Flatten(),
                nn.Dropout(0.2),
                nn.Linear(64, 3),
            )

    return make


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """Makes the configuration of three epochs of five steps, the first epoch a warm-up."""

    def make(
        out: Path | None = None, *, method: Any = "iaat", protocol: Any = "paper", **parts: Any
    ) -> TrainConfig:
        config = preset("digits", method=method, protocol=protocol)
        changes: dict[str, Any] = {
            "attack": {"steps": 3},
            "epsilon": {"warmup_epochs": 1},
            "optim": {"epochs": 3, "batch_size": 5, "lr": 0.05},
            "run": {
                "out": None if out is None else str(out),
                "device": "cpu",
                "tensorboard": False,
                "snapshot_epochs": 1,
            },
        }
        return override(override(config, changes), parts)

    return make


@pytest.fixture
def tiny_fit(tiny_model: Callable[[], nn.Module], tiny_data: ImageData) -> Fit:
    def call(config: TrainConfig, **keywords: Any) -> FitResult:
        return fit(config, model=tiny_model(), data=tiny_data, quiet=True, **keywords)

    return call
