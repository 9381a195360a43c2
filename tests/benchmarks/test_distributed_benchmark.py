"""`python -m benchmarks.distributed`: two pinned ranks beside one, and every share it reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it pins two cores"),
]


def test_a_small_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "distributed.json"
    small = (
        "--width 4 --images 16 --batch-size 8 --epochs 2 --repeats 1 --checkpoint-model resnet18"
    )
    assert distributed.main([*small.split(), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["command"][:3] == ["python", "-m", "benchmarks.distributed"]
    for name, value in found["summary"].items():
        assert name in printed
        figures = value if isinstance(value, list) else [value]
        assert all(figure > 0 for figure in figures), name
    assert len(found["two"][0]["exchange"]) == distributed.EXCHANGES
    assert found["checkpoint"]["bytes"] > 4 * distributed.MEMORY
    assert not [entry for entry in out.parent.iterdir() if entry != out]
