"""The benchmark of AutoAttack compares verdicts sample by sample, and leaves a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import autoattack
from benchmarks.attacks import images, networks
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


def test_verdicts_are_compared_sample_by_sample(net: nn.Module, x: Tensor) -> None:
    y = torch.arange(12)
    contenders = {
        "it": judged(lambda y: y < 6),
        autoattack.PEER: judged(lambda y: (y >= 2) & (y < 9)),
    }
    it, peer = autoattack.measure(net, x, y % 10, contenders, 0.1, batch=5)
    assert (it.both, it.only_it, it.only_peer) == (4, 4, 3), "classes 0 and 1 occur twice"
    assert (peer.both, peer.only_it, peer.only_peer) == (7, 0, 0)
    assert (it.robust, peer.robust) == (8 / 12, 7 / 12)
    assert len(it.edge) == 7
    assert len(it.seconds) == 3
    assert it.stages == [
        {
            "attack": "it",
            "standing_before": 12,
            "fallen": 3,
            "seconds": 6.0,
            "accuracy_after": 9 / 12,
        }
    ]


def test_a_run_leaves_its_record(
    net: nn.Module, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "checkpoint", lambda name: net)
    monkeypatch.setattr(images, "load", lambda n, size: (x[:n], net(x[:n]).argmax(1), "noise"))
    monkeypatch.setattr(
        autoattack, "standard", lambda net, engine: {"pgd": PGD(net, engine=engine)}
    )
    argv = ["--limit", "6", "--batch-size", "4", "--eps", "0", "20", "--no-peer"]
    assert autoattack.main([*argv, "--device", "cpu", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "autoattack.json").read_text())
    assert result["command"][:5] == ["python", "-m", "benchmarks.autoattack", "--limit", "6"]
    assert {"cpu", "torch", "commit", "threads"} <= result["machine"].keys()
    assert [case["eps"] for case in result["cases"]] == [0, 20 / 255]
    for record in result["cases"][0]["records"]:
        assert record["robust"] == 1
    for record in result["cases"][1]["records"]:
        assert record["stages"][0]["standing_before"] == 6
        assert len(record["seconds"]) == 2


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--limit", "0"], "--limit: 0"),
        (["--batch-size", "-1"], "--batch-size: -1"),
        (["--eps", "-1"], "--eps: [-1.0]"),
        ([], "IAAT_FAST_DATA is not set"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    argv: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("IAAT_FAST_DATA", raising=False)
    assert autoattack.main(argv) == 2
    error: Any = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
