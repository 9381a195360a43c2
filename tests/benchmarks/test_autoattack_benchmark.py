"""The benchmark of AutoAttack compares verdicts sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import autoattack
from benchmarks.__main__ import main
from benchmarks.autoattack import ENGINES
from iaat_fast.attacks import PGD


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randint(256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 255


def judged(robust: Callable[[Tensor], Tensor]) -> Callable[..., autoattack.Verdicts]:
    def run(x: Tensor, y: Tensor) -> autoattack.Verdicts:
        stage = {"attack": "it", "standing_before": len(x), "fallen": 1, "seconds": 2.0}
        return robust(y), [stage]

    return run


@pytest.mark.slow
def test_verdicts_are_compared_sample_by_sample(net: nn.Module, x: Tensor) -> None:
    y = torch.arange(12)
    providers = {
        "it": judged(lambda y: y < 6),
        autoattack.PEER: judged(lambda y: (y >= 2) & (y < 9)),
    }
    rows = autoattack.compare("it", net, x, y % 10, providers, 0.1, batch=5)
    it, peer = (row.figures for row in rows)
    counts = ("both", "only_it", "only_peer")
    assert [it[name] for name in counts] == [4, 4, 3], "classes 0 and 1 occur twice"
    assert [peer[name] for name in counts] == [7, 0, 0]
    assert (it["robust"], peer["robust"]) == (8 / 12, 7 / 12)
    assert len(it["edge"]) == 7
    assert len(it["seconds"]) == 3
    assert it["stages"] == [
        {
            "attack": "it",
            "standing_before": 12,
            "fallen": 3,
            "seconds": 6.0,
            "accuracy_after": 9 / 12,
        }
    ]


def test_seconds_and_verdicts_are_those_of_the_attacks(
    net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoattack, "standard", lambda net, **how: {"pgd": PGD(net, **how)})
    y = net(x).argmax(1)
    for eps, robust in ((0, 1), (20 / 255, None)):
        ours = {name: autoattack.by_us(net, *how, eps, 0) for name, how in ENGINES.items()}
        for row in autoattack.compare("it", net, x[:6], y[:6], ours, eps, 4):
            assert row.figures["robust"] == robust or robust is None
            assert row.figures["stages"][0]["standing_before"] == 6
            assert row.n == len(row.figures["seconds"]) == 2


def test_what_is_kept_is_measured_once_per_version(tmp_path: Path) -> None:
    measured = []

    def run() -> dict[str, Any]:
        measured.append(None)
        return {"robust": [True, False], "seconds": len(measured)}

    def kept(**versions: str) -> autoattack.Kept:
        return autoattack.Kept(tmp_path / "kept", {"case": "it", "seed": 0}, versions)

    first = kept(it="1").measured(run, "it", number=0, batch=2)
    assert kept(it="1").measured(run, "it", number=0, batch=2) == first
    assert len(measured) == 1
    kept(it="2").measured(run, "it", number=0, batch=2)
    kept(it="2").measured(run, "it", number=1, batch=2)
    assert len(measured) == 3


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--limit", "0"], "--limit: 0"),
        (["--batch-size", "-1"], "--batch-size: -1"),
        (["--eps", "-1"], "--eps: -1"),
        (["--no-peer"], "IAAT_FAST_DATA names no folder"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    argv: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("IAAT_FAST_DATA", raising=False)
    try:
        status = main(["autoattack", *argv])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    error: Any = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
