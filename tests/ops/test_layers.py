"""The passes of a network under attack are those of its modules in eval mode, and of autograd through them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from iaat_fast import ops
from tests.ops.cases import LAYOUTS, Layer, dtypes

ACTIVATIONS = {"relu": (nn.ReLU(), 0.0, math.inf), "relu6": (nn.ReLU6(), 0.0, 6.0)}
activations = pytest.mark.parametrize(
    ("activation", "floor", "ceiling"), ACTIVATIONS.values(), ids=ACTIVATIONS.keys()
)
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
SHAPE = (4, 5, 6, 7)


def assert_equal(expected: Tensor, actual: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def special(layout: str, dtype: torch.dtype = torch.float32) -> Layer:
    return Layer(SHAPE, dtype, LAYOUTS[layout])


@activations
@dtypes
@layouts
def test_the_mask_is_autograds(
    activation: nn.Module, floor: float, ceiling: float, dtype: torch.dtype, layout: str
) -> None:
    """Everywhere: at the bounds, at infinities and at NaN.

    Behind NaN torch's CPU kernel of ReLU6 blocks the gradient in its vectors and lets it pass behind the last of them,
    as ReLU's does everywhere; so there the answer is the incoming gradient.
    """
    case = special(layout, dtype)
    x = case.x.requires_grad_()
    out = activation(x)
    (expected,) = torch.autograd.grad(out, x, case.grad)
    grad = case.grad.clone()
    assert ops.relu_backward_(grad, out, floor=floor, ceiling=ceiling) is grad
    assert_equal(torch.where(out.isnan(), case.grad, expected), grad)


@activations
def test_two_gradients_are_summed_before_the_mask(
    activation: nn.Module, floor: float, ceiling: float
) -> None:
    case = special("contiguous")
    x = case.x.requires_grad_()
    out = activation(x)
    (expected,) = torch.autograd.grad([out, out], x, [case.grad, case.branch])
    expected = torch.where(out.isnan(), case.grad + case.branch, expected)
    assert_equal(expected, ops.relu_backward_(case.grad, out, case.branch, floor, ceiling))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_of_two_gradients_is_rounded_once(dtype: torch.dtype) -> None:
    case = special("contiguous", dtype)
    exact = case.grad.float() + case.branch.float()
    everywhere = ops.relu_backward_(case.grad, torch.ones_like(case.out), case.branch)
    assert_equal(exact.to(dtype), everywhere)


def test_an_output_at_a_bound_that_its_type_lacks_is_at_the_bound() -> None:
    x = torch.tensor([0.05, 0.1, 0.2], dtype=torch.bfloat16, requires_grad=True)
    out = nn.functional.hardtanh(x, -1.0, 0.1)
    grad = ops.relu_backward_(torch.ones(3).bfloat16(), out, floor=-1.0, ceiling=0.1)
    assert grad.tolist() == [1.0, 0.0, 0.0]


def test_an_infinite_bound_blocks_nothing() -> None:
    out = torch.tensor([-math.inf, -1.0, 0.0, math.inf, math.nan])
    ones = torch.ones(5)
    everything = ops.relu_backward_(ones.clone(), out, floor=-math.inf)
    assert everything.tolist() == [1.0, 1.0, 1.0, 1.0, 1.0]
    assert ops.relu_backward_(ones.clone(), out).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def normalisation(dtype: torch.dtype) -> tuple[nn.BatchNorm2d, Tensor, Tensor]:
    """A BatchNorm in eval mode, and its scale and shift."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(SHAPE[1]).eval().to(dtype)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(SHAPE[1], generator=generator) + 0.5)
    norm.weight.data[::2] *= -1
    scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
    return norm, scale, norm.bias.data - norm.running_mean * scale


@activations
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("residual", [False, True])
def test_a_block_is_its_modules_and_autograd_through_them(
    activation: nn.Module,
    floor: float,
    ceiling: float,
    layout: str,
    dtype: torch.dtype,
    residual: bool,
) -> None:
    """out = activation(norm(x + residual)), of which the sum goes on as the shortcut and has a gradient of its own."""
    generator = torch.Generator().manual_seed(1)
    x, branch, cotangent, past = (
        LAYOUTS[layout](torch.randn(SHAPE, generator=generator, dtype=dtype)) for _ in range(4)
    )
    norm, scale, shift = normalisation(dtype)
    total = (x + branch if residual else x).requires_grad_()
    expected = activation(norm(total))
    targets = ([expected, total], [cotangent, past]) if residual else (expected, cotangent)
    (slope,) = torch.autograd.grad(targets[0], total, targets[1])

    out = ops.scale_shift_relu(
        x, scale, shift, branch if residual else None, floor=floor, ceiling=ceiling
    )
    grad = ops.scale_shift_relu_backward_(
        cotangent, out, scale, past if residual else None, floor, ceiling
    )
    assert_equal(total.detach(), x)
    # torch orders the same few operations otherwise; no number here is beyond 16, and none is near a bound.
    bound = 16 * 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=bound)
    torch.testing.assert_close(grad, slope, rtol=0, atol=bound)
    assert out.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_at_the_sum_and_at_the_end(dtype: torch.dtype) -> None:
    case = special("channels_last", dtype)
    x = case.x.clone()
    out = ops.scale_shift_relu(x, case.scale, case.shift, case.branch)
    total = (case.x.float() + case.branch.float()).to(dtype)
    assert_equal(total, x)
    column = (-1, 1, 1)
    value = total.float() * case.scale.view(column) + case.shift.view(column)
    assert_equal(value.clamp(min=0).to(dtype), out)


def test_without_an_activation_and_a_residual_it_is_the_normalisation_alone() -> None:
    case = special("contiguous")
    before = case.x.clone()
    column = (-1, 1, 1)
    out = ops.scale_shift_relu(case.x, case.scale, case.shift, floor=-math.inf)
    assert_equal(case.x * case.scale.view(column) + case.shift.view(column), out)
    assert_equal(before, case.x)
    grad = ops.scale_shift_relu_backward_(
        case.grad.clone(), out, case.scale, floor=-math.inf, ceiling=math.inf
    )
    assert_equal(case.grad * case.scale.view(column), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_sums_are_rounded_apart(isa: str, dtype: torch.dtype) -> None:
    """A fused multiply-add would keep the square's last bit: (1 + e)^2 - (1 + 2e) = e^2."""
    eps = torch.finfo(dtype).eps
    ones = torch.ones(64, dtype=dtype)
    x = (ones + eps).expand(2, -1).contiguous()
    assert not ops.scale_shift_relu(x, ones + eps, -(ones + 2 * eps)).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda case: ops.relu_backward_(case.grad, case.out),
        lambda case: ops.scale_shift_relu_backward_(case.grad, case.out, case.scale),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "every_second"])
def test_autograd_learns_that_a_gradient_was_overwritten(
    call: Callable[[Layer], Tensor], layout: str
) -> None:
    case = special(layout)
    before = case.grad._version
    call(case)
    assert case.grad._version > before


def test_autograd_learns_that_x_was_overwritten_and_only_then() -> None:
    case = special("contiguous")
    before = case.x._version
    ops.scale_shift_relu(case.x, case.scale, case.shift)
    assert case.x._version == before
    ops.scale_shift_relu(case.x, case.scale, case.shift, case.branch)
    assert case.x._version > before


def test_results_are_constants_to_autograd() -> None:
    case = special("contiguous")
    out = ops.scale_shift_relu(case.x.requires_grad_(), case.scale.requires_grad_(), case.shift)
    assert not out.requires_grad
    grad = ops.scale_shift_relu_backward_(case.grad, out, case.scale, case.branch.requires_grad_())
    assert not grad.requires_grad
