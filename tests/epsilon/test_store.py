"""Radii that another rule than Algorithm 2 has found go into the memory, or are refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iaat_fast.epsilon import EpsilonMemory


def test_radii_are_stored_at_their_numbers() -> None:
    memory = EpsilonMemory(4, 0.1, 0.1, init=0.5)
    memory.store(torch.tensor([3, 1]), torch.tensor([0.2, 0.0]))
    assert torch.equal(memory.values, torch.tensor([0.5, 0.0, 0.5, 0.2]))


@pytest.mark.parametrize(
    ("index", "eps", "message"),
    [
        (torch.tensor([4]), torch.tensor([0.1]), "index"),
        (torch.tensor([-1]), torch.tensor([0.1]), "index"),
        (torch.tensor([0, 1]), torch.tensor([0.1]), r"^eps: .* of shape \(1,\), expected float32"),
        (torch.tensor([0]), torch.tensor([0.1]).double(), r"^eps: torch.float64"),
        (torch.tensor([0]), torch.tensor([-0.1]), "^eps: a radius is negative or NaN"),
        (torch.tensor([0]), torch.tensor([torch.nan]), "^eps: a radius is negative or NaN"),
    ],
)
def test_bad_radii_are_refused_and_nothing_is_stored(
    index: Tensor, eps: Tensor, message: str
) -> None:
    memory = EpsilonMemory(4, 0.1, 0.1, init=0.5)
    with pytest.raises(ValueError, match=message):
        memory.store(index, eps)
    assert (memory.values == 0.5).all()
