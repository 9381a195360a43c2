"""How far an evaluation is: the work still expected, the lines where standard error is no terminal, fair shares."""

from __future__ import annotations

import pytest
import torch

from iaat_fast.evaluate import progress
from iaat_fast.evaluate.progress import (
    Progress,
    Rates,
    WorkEstimator,
    expected_passes,
    shares,
)

BUDGETS = [(10, 5), (100, 5), (1000, 2)]


def bools(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def expected(
    restart: int, before: torch.Tensor, standing: torch.Tensor, done: torch.Tensor, left: int
) -> float:
    return expected_passes(
        BUDGETS,
        restart=restart,
        before=before,
        standing=standing,
        done=done,
        left=left,
        estimator=WorkEstimator(),
    )


def test_before_anything_is_seen_all_are_expected_to_stand() -> None:
    everyone = torch.ones(3, 4, dtype=torch.bool)
    found = expected(0, everyone, everyone, torch.zeros(4, dtype=torch.bool), 4 * 1000)
    # Restarts 0 and 1 go to step 1,000, restarts 2 to 4 to step 100.
    assert found == 4 * (1000 + 1000 + 3 * 100)


def test_after_a_restart_those_who_stand_are_counted_as_deep_as_they_stand() -> None:
    everyone = torch.ones(3, 4, dtype=torch.bool)
    standing = bools([1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0])
    found = expected(0, everyone, standing, torch.ones(4, dtype=torch.bool), 0)
    # One to 1,000, one to 100, one to 10, one not at all; then three times 100, 100 and 10.
    assert found == (1000 + 100 + 10) + 3 * (100 + 100 + 10)


def test_in_the_middle_the_others_are_expected_to_fall_like_those_seen() -> None:
    everyone = torch.ones(3, 8, dtype=torch.bool)
    standing = everyone.clone()
    standing[:, 1:4] = False  # of the four that are done, one stands
    done = torch.arange(8) < 4
    found = expected(0, everyone, standing, done, 4 * 1000)
    assert found == 4 * 1000 + 2 * (1000 + 3 * 100)


def test_steps_that_samples_did_not_need_are_not_expected_of_the_others() -> None:
    estimator = WorkEstimator().plus(10 + 40, 200)
    assert estimator.expected(100) == 25
    everyone = torch.ones(1, 4, dtype=torch.bool)
    found = expected_passes(
        [(100, 1)],
        restart=0,
        before=everyone,
        standing=everyone,
        done=bools([1, 1, 0, 0])[0],
        left=200,
        estimator=estimator,
    )
    assert found == 50


def test_attacks_to_come_are_expected_to_cost_what_those_before_did() -> None:
    rates = Rates()
    assert rates.expected([[100, 100], [50]]) == 250
    rates.add(0, 80, 100)
    rates.add(1, 10, 100)
    assert rates.expected([[100, 100], [50]]) == 80 + 10 + 40


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


def test_shares_sum_to_the_whole_and_are_exact_where_they_can_be() -> None:
    assert shares(30, [1, 2, 0]) == [10, 20, 0]
    assert sum(shares(31, [3, 1, 7])) == 31
    assert shares(7, [0, 5]) == [0, 7]
