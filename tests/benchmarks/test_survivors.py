"""Restarts on survivors: the verdicts of the plain loop, for fewer gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import survivors
from benchmarks.attacks.providers import Setting
from benchmarks.targets import smooth_noise


def small_restarts() -> survivors.Restarts:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    x = smooth_noise(48, 32).mul(255).round().div(255)
    with torch.no_grad():
        # A margin on top, or every image falls to the first restart and there is nothing to compare.
        net[3].weight *= 3
        y = net(x).argmax(1)
    return survivors.Restarts(net, x, y, Setting(eps=1 / 255, alpha=0.5 / 255, steps=3), 3, 20)


@pytest.mark.slow
def test_survivors_have_the_verdicts_of_the_plain_loop() -> None:
    rows = survivors.measure_restarts("it", small_restarts(), rounds=1)
    figures = {row.provider: row.figures for row in rows}
    plain = figures[survivors.PLAIN]
    assert 0 < plain["robust"] < 1
    for name in ("PGD, survivors", "robust_accuracy"):
        assert (figures[name]["same_verdicts"], figures[name]["missed"]) == (1, 0)
        assert figures[name]["gradients"] < 1
    assert figures[survivors.EARLY]["missed"] == 0
    assert figures[survivors.EARLY]["robust"] <= plain["robust"]
    assert {row.status for row in rows} == {"ok"}


def test_other_verdicts_are_wrong_and_their_time_is_not_kept(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def all_robust(self: survivors.Restarts) -> tuple[torch.Tensor, float]:
        return torch.zeros(48, dtype=torch.bool), 0.1

    monkeypatch.setattr(survivors.Restarts, "evaluation", all_robust)
    rows = survivors.measure_restarts("it", small_restarts(), rounds=1)
    (wrong,) = (row for row in rows if row.status != "ok")
    assert (wrong.provider, wrong.status, wrong.p50) == ("robust_accuracy", "wrong", None)
