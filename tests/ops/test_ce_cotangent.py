"""`ce_cotangent`: the cross-entropy's gradient up to a positive factor, also where that gradient has underflowed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def autograd_gradient(logits: Tensor, y: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)[0]


def saturated(dtype: torch.dtype, margin: float) -> tuple[Tensor, Tensor]:
    """Logits whose true class leads by `margin`, the others a little apart."""
    logits = torch.randn(8, 10, generator=torch.manual_seed(0)).to(dtype)
    y = torch.arange(8)
    logits[torch.arange(8), y] = logits.amax(1) + margin
    return logits, y


def test_it_is_autograds_gradient_times_a_power_of_two() -> None:
    """So the gradients that come back through the network are the same mantissas, and the signs the same bits."""
    generator = torch.manual_seed(0)
    logits = 3 * torch.randn(500, 10, generator=generator)
    y = torch.randint(10, (500,), generator=generator)
    logits[:100, 0], y[:100] = torch.linspace(5, 25, 100), 0
    plain = autograd_gradient(logits, y)
    ordinary = plain.gather(1, y.view(-1, 1))[:, 0].abs() > 2.0**-12
    assert 400 < int(ordinary.sum()) < 500
    power = (ops.ce_cotangent(logits, y) / plain)[ordinary]
    assert torch.equal(power, power[:, :1].expand_as(power))
    assert (power > 0).all()
    assert (torch.frexp(power).mantissa == 0.5).all()


def test_every_row_is_about_as_large_as_one() -> None:
    generator = torch.manual_seed(0)
    logits = 200 * torch.randn(500, 10, generator=generator)
    y = torch.randint(10, (500,), generator=generator)
    y[:250] = logits[:250].argmax(1)
    largest = ops.ce_cotangent(logits, y).abs().amax(1)
    assert ((largest >= 0.5) & (largest < 10)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [5.0, 8.0, 9.0, 12.0, 20.0, 60.0, 200.0, 3e4])
def test_a_saturated_row_points_where_the_float64_gradient_points(
    dtype: torch.dtype, margin: float
) -> None:
    logits, y = saturated(dtype, margin)
    cotangent = ops.ce_cotangent(logits, y)
    others = logits.double().scatter(1, y.view(-1, 1), -math.inf)
    shares = others.softmax(1)  # of the others among themselves; the y entry is minus their sum
    expected = shares.scatter(1, y.view(-1, 1), -1.0)
    size = cotangent.double().gather(1, y.view(-1, 1)).abs()
    # Just above the threshold the plain gradient still decides, which has lost 12 bits.
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    tolerance = max(torch.finfo(dtype).eps, 2**12 * torch.finfo(wide).eps)
    torch.testing.assert_close(cotangent.double() / size, expected, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [20.0, 200.0, 3e4])
def test_no_row_is_zero_where_cross_entropy_is(dtype: torch.dtype, margin: float) -> None:
    logits, y = saturated(dtype, margin)
    assert margin < 200 or not autograd_gradient(logits.float(), y).any()
    cotangent = ops.ce_cotangent(logits, y)
    assert (cotangent.gather(1, y.view(-1, 1)) < 0).all()
    assert (cotangent.scatter(1, y.view(-1, 1), 0.0).sum(1) > 0).all()


def test_rows_sum_to_zero() -> None:
    logits, y = saturated(torch.float64, 30.0)
    torch.testing.assert_close(
        ops.ce_cotangent(logits, y).sum(1), torch.zeros(8).double(), rtol=0, atol=1e-15
    )


def test_candidates_share_their_samples_classes() -> None:
    logits, y = torch.randn(12, 5), torch.randint(5, (4,))
    parts = [ops.ce_cotangent(part, y) for part in logits.chunk(3)]
    assert torch.equal(ops.ce_cotangent(logits, y), torch.cat(parts))


def test_a_target_has_the_same_gradient() -> None:
    logits, y = torch.randn(4, 5), torch.randint(5, (4,))
    assert torch.equal(ops.ce_cotangent(logits, y, targeted=True), ops.ce_cotangent(logits, y))


@pytest.mark.parametrize("margin", [1.0, 1000.0])
def test_a_masked_class_gets_no_gradient(margin: float) -> None:
    logits = torch.tensor([[margin, 0.5, -math.inf]])
    cotangent = ops.ce_cotangent(logits, torch.tensor([0]))
    assert cotangent.isfinite().all()
    assert cotangent[0, 2] == 0
    assert cotangent[0, 1] > 0


@pytest.mark.parametrize("top", [2.0, 30.0], ids=["", "saturated"])
@pytest.mark.parametrize("y", [0, 1, 2], ids=["ahead", "behind", "masked"])
@pytest.mark.parametrize("left", [1, 2])
def test_few_classes_left_give_autograds_signs(left: int, y: int, top: float) -> None:
    logits = torch.tensor([[top, 1.0, -math.inf, -math.inf]])
    logits[:, left:] = -math.inf
    expected = autograd_gradient(logits.double(), torch.tensor([y])).float()
    assert torch.equal(ops.ce_cotangent(logits, torch.tensor([y])).sign(), expected.sign())


def test_a_single_class_has_no_gradient() -> None:
    assert torch.equal(
        ops.ce_cotangent(torch.randn(3, 1), torch.zeros(3).long()), torch.zeros(3, 1)
    )


def test_an_empty_batch_is_empty() -> None:
    assert ops.ce_cotangent(torch.zeros(0, 10), torch.zeros(0).long()).shape == (0, 10)


def test_any_strides_give_the_same() -> None:
    logits, y = torch.randn(10, 6), torch.randint(10, (6,))
    expected = ops.ce_cotangent(logits.t().contiguous(), y)
    assert torch.equal(ops.ce_cotangent(logits.t(), y), expected)
    assert torch.equal(ops.ce_cotangent(logits.t(), y.repeat_interleave(2)[::2]), expected)


def test_logits_that_require_grad_make_no_graph() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    assert not ops.ce_cotangent(logits, torch.tensor([0, 1])).requires_grad
