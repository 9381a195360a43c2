"""`pgd_step_linf_`: the step of the plain loop in one pass, in place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from iaat_fast import ops


def plain_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: Tensor, alpha: Tensor, sign: float = 1.0
) -> Tensor:
    """The loop body of Madry et al. as torchattacks writes it."""
    eps, alpha = (t.view(-1, *[1] * (x.dim() - 1)) for t in (eps, alpha))
    x_adv = x_adv + sign * alpha * grad.sign()
    delta = torch.maximum(torch.minimum(x_adv - x, eps), -eps)
    return torch.clamp(x + delta, 0, 1)


def case(n: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.manual_seed(0)
    x = torch.rand(n, 3, 16, 16, generator=generator)
    eps = torch.linspace(0, 0.1, n)
    x_adv = ops.project_linf(x + 0.2 * (torch.rand(x.shape, generator=generator) - 0.5), x, eps)
    grad = torch.randn(x.shape, generator=generator) * (
        torch.rand(x.shape, generator=generator) > 0.1
    )
    return x_adv, grad, x, eps, eps / 4 + 0.01


@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_the_plain_step_bit_for_bit(targeted: bool) -> None:
    x_adv, grad, x, eps, alpha = case()
    expected = plain_step(x_adv, grad, x, eps, alpha, -1.0 if targeted else 1.0)
    result = ops.pgd_step_linf_(x_adv, grad, x, eps, alpha, targeted=targeted)
    assert result is x_adv
    assert torch.equal(x_adv, expected)


def test_only_x_adv_is_written() -> None:
    x_adv, *others = case()
    before = [t.clone() for t in others]
    ops.pgd_step_linf_(x_adv, *others)
    assert all(torch.equal(a, b) for a, b in zip(others, before, strict=True))


def test_a_slice_of_a_larger_tensor_is_written_and_nothing_beside_it() -> None:
    x_adv, grad, x, eps, alpha = case()
    expected = plain_step(x_adv, grad, x, eps, alpha)
    for rows in (slice(2, 6), slice(1, 9, 2)):
        big = torch.full((10, 4, 20, 20), 7.0)
        target = big[rows, 1:, 1:17, 3:19]
        target.copy_(x_adv)
        ops.pgd_step_linf_(target, grad, x, eps, alpha)
        assert torch.equal(target, expected)
        target.fill_(7.0)
        assert (big == 7.0).all()


def test_the_memory_formats_may_differ() -> None:
    x_adv, grad, x, eps, alpha = case()
    expected = plain_step(x_adv, grad, x, eps, alpha)
    for a in (torch.contiguous_format, torch.channels_last):
        for b in (torch.contiguous_format, torch.channels_last):
            target = x_adv.clone(memory_format=a)
            ops.pgd_step_linf_(target, grad.contiguous(memory_format=b), x, eps, alpha)
            assert target.is_contiguous(memory_format=a)
            assert torch.equal(target, expected)


def test_zero_and_nan_gradients_are_counted_and_move_nothing() -> None:
    grad = torch.tensor([[0.0, -0.0, math.nan, 1.0, -math.inf]])
    x = torch.full((1, 5), 0.5)
    x_adv, stats = x.clone(), torch.tensor([10, 20])
    ops.pgd_step_linf_(x_adv, grad, x, 0.25, 0.125, stats=stats)
    assert stats.tolist() == [12, 21]
    assert x_adv.tolist() == [[0.5, 0.5, 0.5, 0.625, 0.375]]


def test_counters_may_be_a_strided_view() -> None:
    board = torch.zeros(4, dtype=torch.int64)
    grad = torch.tensor([[0.0, math.nan]])
    ops.pgd_step_linf_(torch.rand(1, 2), grad, torch.rand(1, 2), 0.1, 0.1, stats=board[::2])
    assert board.tolist() == [1, 0, 1, 0]


def test_a_sample_of_radius_zero_may_have_step_zero() -> None:
    x = torch.rand(2, 3)
    x_adv = x.clone()
    eps = torch.tensor([0.0, 0.1])
    ops.pgd_step_linf_(x_adv, torch.ones(2, 3), x, eps, eps)
    assert torch.equal(x_adv[0], x[0])
    assert (x_adv[1] >= x[1]).all()


def test_autograd_learns_that_the_old_values_are_gone() -> None:
    weight, x_adv = torch.rand(2, 3, requires_grad=True), torch.rand(2, 3)
    loss = (weight * x_adv).sum()
    ops.pgd_step_linf_(x_adv, torch.randn(2, 3), torch.rand(2, 3), 0.1, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_that_require_grad_make_no_graph() -> None:
    x_adv = torch.rand(2, 3)
    grad, x = torch.randn(2, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    assert not ops.pgd_step_linf_(x_adv, grad, x, 0.1, 0.1).requires_grad


def test_an_error_leaves_x_adv_and_the_counters_alone() -> None:
    x_adv, grad, x, eps, alpha = case()
    before, stats = x_adv.clone(), torch.zeros(2, dtype=torch.int64)
    for bad_eps, bad_alpha in ((-eps - 1, alpha), (eps, -alpha), (eps * math.nan, alpha)):
        with pytest.raises(ValueError, match=r"^(eps|alpha): "):
            ops.pgd_step_linf_(x_adv, grad, x, bad_eps, bad_alpha, stats=stats)
    assert torch.equal(x_adv, before)
    assert stats.tolist() == [0, 0]


def test_it_works_in_inference_mode_and_on_inference_tensors() -> None:
    args = case()
    expected = plain_step(*args)
    with torch.inference_mode():
        frozen = [t.clone() for t in args]
        assert torch.equal(ops.pgd_step_linf_(*frozen), expected)
