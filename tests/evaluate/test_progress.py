"""The lines that a suite writes where standard error is no terminal."""

from __future__ import annotations

import pytest

from iaat_fast.evaluate import progress
from iaat_fast.evaluate.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_with_the_time_to_go(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(every=60) as tell:
        tell(
            "PGD", 1000, 9000
        )  # 1,000 passes of an earlier process: not counted as this one's speed
        clock[0] += 30
        tell("PGD", 2000, 8000)
        assert capsys.readouterr().err == ""
        clock[0] += 70
        tell("PGD", 3000, 6000)
    # 2,000 passes in 100 s: 6,000 more take 300 s.
    assert capsys.readouterr().err == "PGD: 3.00k of 9.00k passes (33%), 05:00 to go\n"


def test_each_part_counts_from_its_own_start(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(every=60) as tell:
        tell("PGD", 5000, 10)
        clock[0] += 100
        tell("corruption fog", 10, 990)
        assert "? to go" in capsys.readouterr().err
        clock[0] += 60
        tell("corruption fog", 70, 930)
    assert capsys.readouterr().err == "corruption fog: 70.0 of 1.00k passes (7%), 15:30 to go\n"
