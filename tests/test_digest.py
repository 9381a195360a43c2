"""A digest follows dtype, shape, content and order, and nothing else."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from iaat_fast.digest import digest


def test_where_and_how_a_tensor_is_stored_does_not_matter() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert digest(x) == digest(x.T.contiguous().T)
    assert digest(x) == digest(x.clone().requires_grad_())


def test_the_kind_of_a_mapping_or_sequence_does_not_matter() -> None:
    assert digest({"a": (1, None)}) == digest(OrderedDict(a=[1, None]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.tensor([0.0, 1e-45])),
        ([1, 2], [2, 1]),
        ([1, [2]], [[1], 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (1, 1.0),
        (1, True),
        ("1", 1),
        (None, "None"),
    ],
)
def test_everything_else_does(one: object, other: object) -> None:
    assert digest(one) != digest(other)


def test_scalars_empty_tensors_and_half_types_have_one() -> None:
    values = [torch.zeros(()), torch.zeros(0), torch.zeros(1, dtype=torch.bfloat16)]
    assert len({digest(value) for value in values}) == 3
