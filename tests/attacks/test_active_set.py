"""Which rows are kept when a batch shrinks, and to what size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from iaat_fast.attacks.active_set import (
    RunState,
    active_rows,
    as_column,
    bucket,
    run_active,
    where_rows,
)


@pytest.mark.parametrize(
    ("active", "n", "size"),
    [
        *[(8, 8, 8), (7, 8, 8), (6, 8, 6), (5, 8, 6), (4, 8, 4), (3, 8, 3), (1, 8, 1), (0, 8, 0)],
        *[(1, 1, 1), (65, 128, 96), (64, 128, 64), (33, 128, 48), (3, 7, 3), (0, 1, 0)],
    ],
)
def test_buckets_are_few_and_hold_the_active_rows(active: int, n: int, size: int) -> None:
    assert bucket(active, n) == size


def test_the_number_of_bucket_sizes_grows_with_the_logarithm() -> None:
    sizes = {bucket(active, 1024) for active in range(1025)}
    assert len(sizes) <= 2 * 10 + 2
    assert all(bucket(active, 1024) >= active for active in range(1025))


def test_compaction_keeps_the_active_rows_first() -> None:
    found = torch.tensor([True, False, True, True, False, True, True, True])
    rows = active_rows(found)
    assert rows is not None
    assert rows.tolist() == [1, 4]
    assert active_rows(torch.zeros(4, dtype=torch.bool)) is None
    assert active_rows(torch.ones(4, dtype=torch.bool)).tolist() == []  # type: ignore[union-attr]


@pytest.mark.parametrize("which", [[True] * 3, [False] * 3, [False, True, False]], ids=str)
def test_rows_are_chosen_as_by_where_and_never_written(which: list[bool]) -> None:
    images, others, chosen = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4), torch.tensor(which)
    expected = torch.where(as_column(chosen, images), images, others)
    before = images.clone(), others.clone()
    assert torch.equal(where_rows(chosen, images, others), expected)
    assert torch.equal(images, before[0])
    assert torch.equal(others, before[1])


@dataclasses.dataclass
class Counted(RunState):
    """Rows that are found once they have taken as many steps as `wanted` says."""

    results = ("found", "taken")
    wanted: Tensor
    taken: Tensor


@pytest.mark.parametrize("shrinks", [True, False])
def test_rows_that_are_found_leave_the_batch_and_keep_their_results(shrinks: bool) -> None:
    sizes = []

    def step(state: Counted, number: int) -> None:
        sizes.append(len(state.found))
        state.taken = state.taken + (~state.found).int()
        state.found = state.taken >= state.wanted

    wanted = torch.tensor([3, 1, 1, 2, 1, 9, 1, 1])
    state = Counted(found=wanted == 0, wanted=wanted, taken=torch.zeros_like(wanted))
    whole = run_active(state, step, 20, shrinks=shrinks)
    assert torch.equal(whole.taken, wanted)
    assert bool(whole.found.all())
    assert sizes == ([8, 3, 2, *[1] * 6] if shrinks else [8] * 20)


def test_no_row_leaves_before_the_first_step_that_allows_it() -> None:
    sizes = []

    def step(state: Counted, number: int) -> None:
        sizes.append(len(state.found))

    found = torch.tensor([True, False])
    state = Counted(found=found, wanted=found, taken=found)
    run_active(state, step, 3, shrinks=True, compact_from=2)
    assert sizes == [2, 2, 1]
