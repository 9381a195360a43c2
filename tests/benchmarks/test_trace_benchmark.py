"""The cost of a trace: of the same images, with the operations that it adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import trace
from benchmarks.attacks.providers import Setting
from benchmarks.targets import Target, smooth_noise


def small_target() -> Target:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))
    x = smooth_noise(4, 32)
    return Target(net, x, net(x).argmax(1), 10)


def test_a_trace_adds_a_few_operations_per_step_and_changes_no_image() -> None:
    rows = trace.measure_traces("it", small_target(), Setting(steps=3), rounds=1)
    figures = {row.provider: row.figures for row in rows if row.status == "ok"}
    added = figures["iaat_fast, trace"]["ops"] - figures["iaat_fast"]["ops"]
    assert 0 < added < 4 * 25 + 60
    assert figures["iaat_fast, trace"]["fetches"] == figures["iaat_fast"]["fetches"]
    assert figures["iaat_fast, trace"]["over_untraced"] > 0
    others = {row.provider: row.status for row in rows} | {"iaat_fast": "ok"}
    assert set(others.values()) <= {"ok", "missing"}


def test_other_images_are_wrong_and_their_time_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    target = small_target()
    monkeypatch.setattr(
        trace,
        "ours",
        lambda *_: {"iaat_fast": lambda: target.x, "iaat_fast, trace": lambda: target.x + 1},
    )
    rows = trace.measure_traces("it", target, Setting(steps=1), rounds=1)
    wrong = next(row for row in rows if row.provider == "iaat_fast, trace")
    assert (wrong.status, wrong.p50) == ("wrong", None)
