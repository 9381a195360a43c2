"""What the message says about a loss that is not finite, by how often it was looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from iaat_fast.train import TrainConfig, finish
from iaat_fast.train.distributed import SINGLE
from iaat_fast.train.metrics import NonFiniteGuard
from tests.train.same_run import Fit

NAN, INF = float("nan"), float("inf")
LAST = [
    (torch.tensor([8, 3]), torch.tensor([0.1, NAN])),
    (torch.tensor([5, 9, 2]), torch.tensor([INF, 0.3, 0.2])),
]


def test_looked_at_after_each_step_it_names_the_samples() -> None:
    watch = NonFiniteGuard(SINGLE, after=6)
    watch.look(1.5, 7, 0, LAST)
    with pytest.raises(FloatingPointError, match=r"at step 8 \(epoch 1\), .* 2 of the 5 .*: 3, 5$"):
        watch.look(NAN, 8, 0, LAST)


def test_only_the_first_few_are_named() -> None:
    many = [(torch.arange(100), torch.full((100,), NAN))]
    message = r"that of 100 of the 100 samples of its batch: 0, 1, 2, 3, 4, \.\.\.$"
    with pytest.raises(FloatingPointError, match=message):
        NonFiniteGuard(SINGLE, after=0).look(NAN, 1, 0, many)


def test_looked_at_less_often_it_gives_the_range_of_steps_and_names_no_sample() -> None:
    watch = NonFiniteGuard(SINGLE, after=0)
    watch.look(1.5, 25, 0, LAST)
    message = (
        r"is inf at step 50 \(epoch 2\); it was finite at step 25, and not looked at in between$"
    )
    with pytest.raises(FloatingPointError, match=message):
        watch.look(INF, 50, 1, LAST)


def test_an_attack_that_meets_what_diverged_says_at_which_step(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", method="adv", optim={"lr": 1e30, "epochs": 1})
    with pytest.raises(ValueError, match=r"^logits: .* diverged\? \(step 2, epoch 1\)$"):
        tiny_fit(config)


def test_so_does_the_closing_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def meets_nan(*_: Any) -> None:
        raise ValueError("logits: nan")

    monkeypatch.setattr(finish, "evaluate_run", meets_nan)
    result: Any = SimpleNamespace(metrics=[{"step": 7, "epoch": 2}])
    with pytest.raises(
        ValueError, match=r"^logits: nan \(closing evaluation, after step 7, epoch 2"
    ):
        finish.close_run(result, Any)
