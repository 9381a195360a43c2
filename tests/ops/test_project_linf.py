"""`project_linf`: inside the ball, inside the box, and nothing moved that is inside already."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iaat_fast import ops

unit = st.floats(0, 1, width=32)
rows = st.lists(st.tuples(unit, st.floats(-2, 3, width=32), st.floats(0, 2, width=32)), min_size=1)


def columns(case: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, 1], x_adv [N, 1] and eps [N]."""
    x, x_adv, eps = torch.tensor(case, dtype=torch.float32).unbind(1)
    return x.view(-1, 1), x_adv.view(-1, 1), eps


@given(rows)
@settings(max_examples=200, deadline=None)
def test_the_result_is_in_the_ball_and_in_the_box(case: list[tuple[float, float, float]]) -> None:
    x, x_adv, eps = columns(case)
    projected = ops.project_linf(x_adv, x, eps)
    assert ((projected >= 0) & (projected <= 1)).all()
    # x + eps rounds once in float32: at most half a unit in the last place of a sum below 4.
    assert ((projected.double() - x.double()).abs() <= eps.double().view(-1, 1) + 2.0**-23).all()


@given(rows)
@settings(max_examples=200, deadline=None)
def test_projecting_twice_is_projecting_once(case: list[tuple[float, float, float]]) -> None:
    x, x_adv, eps = columns(case)
    once = ops.project_linf(x_adv, x, eps)
    twice = ops.project_linf(once, x, eps)
    # x + (once - x) rounds twice
    torch.testing.assert_close(twice, once, rtol=0, atol=2.0**-23)


@given(rows)
@settings(max_examples=200, deadline=None)
def test_a_ball_of_radius_zero_is_its_centre(case: list[tuple[float, float, float]]) -> None:
    x, x_adv, _ = columns(case)
    assert torch.equal(ops.project_linf(x_adv, x, 0.0), x)


@pytest.mark.slow
@given(rows)
@settings(max_examples=200, deadline=None)
def test_it_is_the_nearest_point_of_ball_and_box(case: list[tuple[float, float, float]]) -> None:
    x, x_adv, eps = (t.double() for t in columns(case))
    nearest = x_adv.clamp((x - eps.view(-1, 1)).clamp(min=0), (x + eps.view(-1, 1)).clamp(max=1))
    torch.testing.assert_close(ops.project_linf(x_adv, x, eps), nearest, rtol=0, atol=1e-15)


def test_every_candidate_has_a_radius_of_its_own() -> None:
    x = torch.tensor([[0.5], [0.4]])
    eps = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.05, 1.0])
    projected = ops.project_linf(torch.ones(6, 1), x, eps)
    torch.testing.assert_close(projected[:, 0], torch.tensor([0.5, 0.5, 0.7, 0.7, 0.55, 1.0]))


@pytest.mark.parametrize("eps", [0.25, 1, math.inf, torch.tensor(0.25), torch.tensor([0.25] * 3)])
def test_a_radius_is_a_number_or_a_tensor(eps: float | Tensor) -> None:
    x, x_adv = torch.full((3, 4), 0.5), torch.rand(3, 4, generator=torch.manual_seed(0))
    expected = x_adv.clamp(0.25, 0.75) if float(torch.as_tensor(eps).max()) < 1 else x_adv
    torch.testing.assert_close(ops.project_linf(x_adv, x, eps), expected)


@pytest.mark.parametrize("rows", [2, 3, 8, 64])
def test_one_radius_as_a_scalar_tensor_for_small_batches(rows: int) -> None:
    """An expanded tensor has to be copied before the kernel can read it, and the copy has to live long enough."""
    for _ in range(20):
        x, x_adv = torch.rand(rows, 5), torch.rand(rows, 5)
        expected = ops.project_linf(x_adv, x, 0.1)
        assert torch.equal(ops.project_linf(x_adv, x, torch.tensor(0.1)), expected)
        assert torch.equal(ops.project_linf(x_adv, x, torch.tensor([0.1]).expand(rows)), expected)


def test_nan_passes_through() -> None:
    x_adv = torch.tensor([[math.nan, 0.9]])
    projected = ops.project_linf(x_adv, torch.zeros(1, 2), 0.5)
    assert projected[0, 0].isnan()
    assert projected[0, 1] == 0.5


def test_the_gradient_is_that_of_a_clamp() -> None:
    generator = torch.manual_seed(0)
    x = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    x_adv = x + 0.4 * (torch.rand(3, 4, generator=generator, dtype=torch.float64) - 0.5)
    eps = torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
    x_adv.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: ops.project_linf(a, x, eps), x_adv)
    assert torch.autograd.gradgradcheck(lambda a: ops.project_linf(a, x, eps), x_adv)


def test_the_gradient_passes_strictly_inside_only() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.9, 0.1, 0.5]])
    x_adv = torch.tensor([[0.5, 0.75, 0.25, 0.8, 1.0, -0.05, 0.6]], requires_grad=True)
    ops.project_linf(x_adv, x, 0.25).sum().backward()
    assert x_adv.grad is not None
    assert x_adv.grad.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]


def test_candidates_have_their_own_gradient() -> None:
    x_adv = torch.full((4, 2), 0.7, requires_grad=True)
    ops.project_linf(
        x_adv, torch.full((2, 2), 0.5), torch.tensor([0.1, 0.3, 0.3, 0.1])
    ).sum().backward()
    assert x_adv.grad is not None
    assert x_adv.grad[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
