"""A finished run on digits, small enough to be attacked in a moment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from iaat_fast import data, models
from iaat_fast.run_folder import RunFolder

CONFIG = {
    "preset": "digits",
    "method": "adv",
    "protocol": "paper",
    "data": {"name": "digits", "path": None, "limit": 200, "augment": False},
    "model": {"name": "digits-cnn", "width": 4, "depth": None},
    "evaluation": {
        "eps": 51 / 255,
        "alpha": 12.75 / 255,
        "steps": 3,
        "restarts": 2,
        "batch_size": 64,
    },
    "run": {"seed": 0},
}


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written through RunFolder: a digits-cnn of width 4, trained for a second."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "digits")
    folder.create(CONFIG, {})
    digits = data.load("digits", limit=200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("digits-cnn", width=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = data.fetch(digits.train, torch.arange(200))
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    folder.save_checkpoint(
        {
            "model": model.state_dict(),
            "epsilon": torch.zeros(200),
            "optimizer": optimizer.state_dict(),
            "epoch": 7,
            "step": 60,
            "config": CONFIG,
        }
    )
    return folder.path


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))
