"""The work still expected: passes that will be taken, by the share of samples that fell so far."""

from __future__ import annotations

import torch

from iaat_fast.evaluate.outlook import Economy, Rates, expected_passes

MARKS = [(10, 5), (100, 5), (1000, 2)]


def bools(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def expected(
    restart: int, before: torch.Tensor, standing: torch.Tensor, settled: torch.Tensor, left: int
) -> float:
    return expected_passes(
        MARKS,
        restart=restart,
        before=before,
        standing=standing,
        settled=settled,
        left=left,
        economy=Economy(),
    )


def test_before_anything_is_seen_everybody_is_expected_to_stand() -> None:
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
    settled = torch.arange(8) < 4
    found = expected(0, everyone, standing, settled, 4 * 1000)
    assert found == 4 * 1000 + 2 * (1000 + 3 * 100)


def test_steps_that_samples_did_not_need_are_not_expected_of_the_others() -> None:
    economy = Economy().with_left(torch.tensor([10, 40]), torch.tensor([100, 100]))
    assert economy.ratio == 0.25
    everyone = torch.ones(1, 4, dtype=torch.bool)
    found = expected_passes(
        [(100, 1)],
        restart=0,
        before=everyone,
        standing=everyone,
        settled=bools([1, 1, 0, 0])[0],
        left=200,
        economy=economy,
    )
    assert found == 50


def test_attacks_to_come_are_expected_to_cost_what_those_before_did() -> None:
    rates = Rates()
    assert rates.expected([[100, 100], [50]]) == 250
    rates.add(0, 80, 100)
    rates.add(1, 10, 100)
    assert rates.expected([[100, 100], [50]]) == 80 + 10 + 40
