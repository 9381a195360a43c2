"""Which rows are kept when a batch shrinks, and to what size."""

from __future__ import annotations

import pytest
import torch

from iaat_fast.attacks.active_set import active_rows, bucket


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
