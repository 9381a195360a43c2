"""`select_epsilon_`: Algorithm 2 of the paper, line by line, on logits made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iaat_fast import ops

GAMMA, BETA = 0.02, 0.1


def verdicts(*robust: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor]:
    """Logits [3N, 2] and classes [N] for which candidate k of sample i is robust where robust[i][k]."""
    n = len(robust)
    logits = torch.zeros(3 * n, 2)
    for i, row in enumerate(robust):
        for k, right in enumerate(row):
            logits[k * n + i, 1 if right else 0] = 5.0
    return logits, torch.ones(n, dtype=torch.int64)


def select(
    prev: list[float], robust: list[tuple[bool, bool, bool]], **options: object
) -> tuple[list[float], list[int]]:
    memory = torch.tensor(prev)
    logits, y = verdicts(*robust)
    eps, choice = ops.select_epsilon_(
        memory, torch.arange(len(prev)), logits, y, GAMMA, BETA, **options
    )  # type: ignore[arg-type]
    assert torch.equal(memory, eps)
    return eps.tolist(), choice.tolist()


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "choice", "candidate"),
    [
        (True, True, 0, 0.12),  # lines 4-5
        (True, False, 0, 0.12),  # line 6 is not reached
        (False, True, 1, 0.10),  # lines 6-7
        (False, False, 2, 0.08),  # line 9, whatever the third candidate's logits are
    ],
)
def test_lines_4_to_11(
    first: bool, second: bool, third: bool, choice: int, candidate: float
) -> None:
    eps, chosen = select([0.1], [(first, second, third)])
    assert chosen == [choice]
    assert eps[0] == pytest.approx((1 - BETA) * 0.1 + BETA * candidate, rel=1e-6)


def test_the_result_is_clamped_at_zero() -> None:
    eps, choice = select([0.0, 0.001], [(False, False, False)] * 2)
    assert choice == [2, 2]
    assert eps == [0.0, 0.0]  # 0.001 - BETA * GAMMA = -0.001


def test_the_result_is_clamped_to_the_bounds() -> None:
    robust, fooled = (True, True, True), (False, False, False)
    eps, _ = select([0.1, 0.1, 0.02], [robust, fooled, fooled], eps_min=0.03, eps_max=0.101)
    assert eps == pytest.approx([0.101, 0.098, 0.03], rel=1e-6)


def test_the_released_code_clamps_the_candidate_before_smoothing() -> None:
    eps, _ = select([0.001], [(False, False, False)], clamp_candidate=True)
    assert eps == pytest.approx([(1 - BETA) * 0.001], rel=1e-6)


def test_the_released_code_shrinks_the_radius_of_misclassified_samples() -> None:
    mask = torch.tensor([True, False])
    eps, _ = select([0.1, 0.1], [(True, True, True)] * 2, misclassified=mask)
    assert eps == pytest.approx([(1 - BETA) * 0.1, (1 - BETA) * 0.1 + BETA * 0.12], rel=1e-6)


def test_only_the_batchs_entries_of_the_memory_change() -> None:
    memory = torch.linspace(0.1, 0.2, 11)
    before, index = memory.clone(), torch.tensor([7, 0, 4])
    logits, y = verdicts((True, True, True), (False, True, False), (False, False, False))
    eps, choice = ops.select_epsilon_(memory, index, logits, y, GAMMA, BETA)
    assert choice.tolist() == [0, 1, 2]
    assert torch.equal(memory[index], eps)
    others = torch.ones(11, dtype=torch.bool).scatter(0, index, False)
    assert torch.equal(memory[others], before[others])
    step = torch.tensor([BETA * GAMMA, 0.0, -BETA * GAMMA])
    torch.testing.assert_close(eps, before[index] + step)


def test_a_strided_memory_is_updated_where_it_is() -> None:
    board = torch.full((6,), 0.1)
    logits, y = verdicts((True, True, True))
    ops.select_epsilon_(board[::2], torch.tensor([1]), logits, y, GAMMA, BETA)
    assert (board != 0.1).tolist() == [False, False, True, False, False, False]


def test_autograd_learns_that_the_old_radii_are_gone() -> None:
    weight, memory = torch.rand(2, requires_grad=True), torch.rand(2)
    loss = (weight * memory).sum()
    logits, y = verdicts((True, True, True))
    ops.select_epsilon_(memory, torch.tensor([0]), logits, y, GAMMA, BETA)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_empty_batch_changes_nothing() -> None:
    memory = torch.full((3,), 0.1)
    none = torch.zeros(0, dtype=torch.int64)
    eps, choice = ops.select_epsilon_(memory, none, torch.zeros(0, 5), none, GAMMA, BETA)
    assert eps.shape == choice.shape == (0,)
    assert torch.equal(memory, torch.full((3,), 0.1))


def test_equal_logits_are_predicted_as_the_first_of_them() -> None:
    logits = torch.zeros(6, 3)
    _, choice = ops.select_epsilon_(
        torch.zeros(2), torch.arange(2), logits, torch.tensor([0, 1]), GAMMA, BETA
    )
    assert choice.tolist() == [0, 2]


bad_inputs = pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a["logits"].__setitem__((4, 1), math.nan),
        lambda a: a["logits"].__setitem__((4, 1), math.inf),
        lambda a: a["logits"].__setitem__(4, -math.inf),
        lambda a: a["y"].__setitem__(1, 2),
        lambda a: a["y"].__setitem__(1, -1),
        lambda a: a["index"].__setitem__(1, 5),
        lambda a: a["index"].__setitem__(1, -1),
    ],
    ids=["nan", "inf", "all masked", "class 2 of 2", "class -1", "index 5 of 5", "index -1"],
)


@bad_inputs
def test_an_error_leaves_the_memory_alone(spoil: object) -> None:
    memory = torch.linspace(0.1, 0.2, 5)
    logits, y = verdicts((True, True, True), (False, False, False))
    args = {"index": torch.tensor([0, 3]), "logits": logits, "y": y}
    spoil(args)  # type: ignore[operator]
    before = memory.clone()
    with pytest.raises(ValueError, match=r"^(logits|y|index): "):
        ops.select_epsilon_(memory, gamma=GAMMA, beta=BETA, **args)
    assert torch.equal(memory, before)


radii = st.floats(0, 0.5, width=32)
booleans = st.tuples(st.booleans(), st.booleans(), st.booleans())


@given(st.lists(st.tuples(radii, booleans), min_size=1, max_size=8), radii, radii)
@settings(max_examples=100, deadline=None)
def test_a_radius_stays_in_its_bounds_and_moves_by_at_most_beta_gamma(
    samples: list[tuple[float, tuple[bool, bool, bool]]], low: float, width: float
) -> None:
    prev = [radius for radius, _ in samples]
    eps, _ = select(prev, [robust for _, robust in samples], eps_min=low, eps_max=low + width)
    for before, after in zip(prev, eps, strict=True):
        assert low - 1e-7 <= after <= low + width + 1e-7
        held = min(max(before, low), low + width)
        assert abs(after - held) <= BETA * GAMMA + 1e-7
