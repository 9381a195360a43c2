"""Whole runs of the baselines: their folders, resuming, and that they make networks robust."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iaat_fast.data import ImageData
from iaat_fast.evaluate import robust_accuracy
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import fit, override, preset
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.step import TrainingStep

BASELINES = ("mixup", "trades", "mart", "mma", "cat")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Killed in the step with this number (from 1), after it has changed radii and weights."""
    original, calls = TrainingStep.__call__, iter(range(1, 1000))

    def call(self: TrainingStep, *args: Any, **keywords: Any) -> Tensor:
        loss = original(self, *args, **keywords)
        if next(calls) == number:
            raise Killed
        return loss

    monkeypatch.setattr(TrainingStep, "__call__", call)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*BASELINES, "iaat"])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    method: str,
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed twice: soon after it began, and again once it has been resumed."""

    def run(name: str, **keywords: Any) -> RunFolder:
        parts = {"optim": {"ema_decay": 0.8}, "run": {"checkpoint_steps": 2}}
        config = tiny_config(tmp_path / name, method=method, **parts)
        return fit(config, model=tiny_model(), data=tiny_data, quiet=True, **keywords).folder

    whole = run("whole")
    for at, resume, last in ((3, False, 2), (11, True, 12)):
        with monkeypatch.context() as patch:
            kill_in_step(at, patch)
            with pytest.raises(Killed):
                run("killed", resume=resume)
        assert RunFolder(tmp_path / "killed").checkpoint()["step"] == last
    resumed = run("killed", resume=True)
    one, other = whole.checkpoint(), resumed.checkpoint()
    for part in ("model", "ema"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), (part, name)
    assert torch.equal(one["epsilon"], other["epsilon"])
    assert torch.equal(one["totals"], other["totals"])
    rows = [[{**row, "seconds": None} for row in folder.metrics()] for folder in (whole, resumed)]
    assert rows[0] == rows[1]


def test_what_a_run_records_of_each(
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    results = {
        method: fit(
            tiny_config(tmp_path / method, method=method),
            model=tiny_model(),
            data=tiny_data,
            quiet=True,
        )
        for method in BASELINES
    }
    for method in ("mixup", "trades", "mart"):
        assert (results[method].epsilon == torch.tensor(0.2)).all()
        assert results[method].folder.epsilon_snapshots() == {}
    margins = results["mma"].epsilon
    assert margins.std() > 0
    assert margins.max() <= 1.05 * 0.5 + 1e-6
    radii = results["cat"].epsilon
    assert radii.std() > 0
    assert radii.max() <= 3 * 8 / 255 + 1e-6, "three visits"
    for method, last in (("mma", margins), ("cat", radii)):
        snapshots = results[method].folder.epsilon_snapshots()
        assert list(snapshots) == [1, 2, 3]
        assert np.array_equal(np.load(snapshots[3]), last.numpy())
    for method in ("trades", "mart", "cat"):
        for row in results[method].metrics:
            assert 0 <= row["train_robust_accuracy"] <= 1
            assert 0 <= row["train_clean_accuracy"] <= 1
    for row in results["mixup"].metrics:
        assert row["train_clean_accuracy"] is None
        assert row["train_robust_accuracy"] is None
    for row in results["mma"].metrics:
        assert 0 <= row["train_clean_accuracy"] <= 1
        assert row["train_robust_accuracy"] is None


@pytest.fixture(scope="module")
def robust(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    """The robust accuracy on digits after a few epochs of a method."""

    def measure(method: Any) -> float:
        changes: dict[str, Any] = {
            "data": {"limit": 200},
            "attack": {"eps": 0.2, "alpha": 0.1, "steps": 3},
            "baseline": {"mma_bisections": 6},
            "optim": {"lr": 0.05, "epochs": 10, "batch_size": 50, "decay_epochs": (8,)},
            "evaluation": {"steps": 1, "restarts": 1},
            "run": {
                "out": str(tmp_path_factory.mktemp("runs") / method),
                "device": "cpu",
                "tensorboard": False,
            },
        }
        config = override(preset("digits", method=method), changes)
        result = fit(config, quiet=True)
        how = config.evaluation
        return robust_accuracy(
            result.model, result.data.test, eps=how.eps, alpha=how.alpha, steps=10, restarts=1
        ).accuracy

    return measure


@pytest.fixture(scope="module")
def robust_of_clean(robust: Callable[[str], float]) -> float:
    return robust("clean")


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_it_makes_a_network_more_robust_than_clean_training(
    method: str, robust: Callable[[str], float], robust_of_clean: float
) -> None:
    found = robust(method)
    assert found > robust_of_clean + 0.15
