"""The stem's ops: the reference and the CPU's against float64 and autograd, their registration, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from iaat_fast import ops
from iaat_fast.models.layers import Normalize
from iaat_fast.ops import reference
from tests.ops.stem_cases import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    Stem,
    assert_forward_right,
    assert_step_right,
)

_ops = torch.ops.iaat_fast

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
# The reference, and whatever serves the CPU here.
backends = pytest.mark.parametrize("backend", [reference, _ops], ids=["reference", "registered"])


@backends
@dtypes
@shapes
@layouts
def test_the_convolution_is_right_to_one_rounding(
    backend: ModuleType, dtype: torch.dtype, shape: tuple[int, int, int, int], layout: str
) -> None:
    case = Stem(shape, dtype, layout=layout)
    assert_forward_right(case, backend)
    assert_forward_right(case, backend, -math.inf, math.inf)
    assert_forward_right(case, backend, 0.0, 0.3)


@backends
@dtypes
@shapes
@layouts
@pytest.mark.parametrize("k", [1, 3])
def test_the_step_is_that_of_the_exact_gradient(
    backend: ModuleType, dtype: torch.dtype, shape: tuple[int, int, int, int], layout: str, k: int
) -> None:
    case = Stem(shape, dtype, layout=layout, k=k)
    assert_step_right(case, backend, targeted=k == 3)
    assert_step_right(case, backend, counted=False)


@backends
@dtypes
def test_nan_stays_nan(backend: ModuleType, dtype: torch.dtype) -> None:
    case = Stem((3, 8, 9, 7), dtype, k=3, poisoned=True)
    assert case.x.isnan().any()
    assert case.gradient()[0].isnan().any()
    spreading = dtype is torch.bfloat16 and backend is _ops and ops.backend() == "native"
    assert_forward_right(case, backend, spreading=spreading)
    assert_step_right(case, backend, spreading=spreading)


def test_the_padding_is_zero_after_the_normalisation() -> None:
    """Images of the mean are 0 once normalised, and so is what lies round them."""
    mean, std = torch.tensor([0.3, 0.6]), torch.tensor([0.2, 0.4])
    x = mean.view(1, 2, 1, 1).expand(1, 2, 4, 4)
    weight, bias = torch.randn(8, 2, 3, 3), torch.randn(8)
    out = ops.stem_conv_relu(x, mean, std, weight, bias, floor=-math.inf)
    assert torch.equal(out, bias.view(1, 8, 1, 1).expand(1, 8, 4, 4))


@pytest.mark.parametrize("shape", [(3, 16, 8, 9), (1, 8, 12, 5)], ids=str)
def test_both_are_autograds_of_the_modules(shape: tuple[int, int, int, int]) -> None:
    """Normalize, Conv2d and ReLU in float64; the float32 op also rounds the normalised images, three times."""
    case = Stem(shape, torch.float32)
    conv = nn.Conv2d(shape[0], shape[1], 3, padding=1)
    conv.weight.data, conv.bias.data = case.weight, case.bias
    normalize = Normalize(case.mean.tolist(), case.std.tolist())
    net = nn.Sequential(normalize, conv, nn.ReLU()).double()
    x = case.x_adv.double().requires_grad_()
    right = net(x)

    args = (case.mean, case.std, case.weight, case.bias)
    out = ops.stem_conv_relu(case.x_adv, *args)
    case.x = case.x_adv
    bound = case.output()[1]
    assert ((out.double() - right).abs() <= bound * (9 * shape[0] + 4) / (9 * shape[0] + 1)).all()

    cotangent = case.grad.double()
    (gradient,) = torch.autograd.grad(right, x, cotangent)
    # What comes back through ReLU, for which the program has an op of its own.
    case.grad = case.grad * (right > 0)
    certain = gradient.abs() * case.std.view(-1, 1, 1) > 2 * case.gradient()[1]
    assert certain[:2].double().mean() > 0.98
    x_adv = case.x_adv.clone()
    ops.stem_conv_step_(x_adv, case.grad, case.weight, case.x, 1.0, 0.25, -9.0, 9.0)
    moved = (x_adv - case.x).sign()
    assert torch.equal(moved[certain], gradient.sign().float()[certain])


def test_small_float16_gradients_still_step() -> None:
    """Their sum is below the least float16, which would round it to 0."""
    weight = torch.full((8, 1, 3, 3), 2.0**-14, dtype=torch.float16)
    grad = torch.full((1, 8, 4, 4), 2.0**-14, dtype=torch.float16)
    x, stats = torch.full((1, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    x_adv = ops.stem_conv_step_(x.clone(), grad, weight, x, 0.1, 0.1, stats=stats)
    assert (x_adv > x).all()
    assert stats.tolist() == [0, 0]


def test_no_images_at_all() -> None:
    weight, channel = torch.randn(8, 3, 3, 3), torch.ones(3)
    x = torch.rand(0, 3, 5, 7)
    out = ops.stem_conv_relu(x, channel, channel, weight, torch.ones(8))
    assert out.shape == (0, 8, 5, 7)
    assert ops.stem_conv_step_(x, out, weight, x, 0.1, 0.1) is x


def test_both_compile_into_one_graph() -> None:
    case = Stem((3, 8, 4, 6), torch.bfloat16, k=2)

    def both(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        x_adv = ops.stem_conv_step_(x_adv.clone(), case.grad, case.weight, case.x, 0.1, 0.02)
        return x_adv, ops.stem_conv_relu(x_adv, case.mean, case.std, case.weight, case.bias)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(case.x_adv), both(case.x_adv), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_is_left_to_autograd_but_the_new_images() -> None:
    case = Stem((3, 8, 4, 4), torch.float32)
    weight = case.weight.requires_grad_()
    out = ops.stem_conv_relu(case.x, case.mean, case.std, weight, case.bias.requires_grad_())
    assert not out.requires_grad
    before = case.x_adv._version
    ops.stem_conv_step_(case.x_adv, case.grad, weight, case.x, 0.1, 0.01)
    assert not case.x_adv.requires_grad
    assert case.x_adv._version > before


# The strides of the result have a test of their own, over all types and shapes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "shape", "layout", "counted"),
    [
        (torch.float32, (3, 8, 5, 7), "channels_last", True),
        (torch.bfloat16, (1, 16, 1, 1), "contiguous", False),
    ],
    ids=str,
)
def test_torch_knows_both(
    dtype: torch.dtype, shape: tuple[int, int, int, int], layout: str, counted: bool
) -> None:
    case = Stem(shape, dtype, layout=layout, k=2)
    stats = torch.zeros(2, dtype=torch.int64) if counted else None
    torch.library.opcheck(_ops.stem_conv_relu, case.forward_args())
    torch.library.opcheck(_ops.stem_conv_step_, case.step_args(False, stats))


@dtypes
@pytest.mark.parametrize("shape", [(3, 8, 5, 7), (1, 16, 1, 1), (1, 8, 1, 4)], ids=str)
def test_tracing_sees_the_strides_of_the_result(
    dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    args = Stem(shape, dtype).forward_args()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        traced = _ops.stem_conv_relu(*fake)
    real = _ops.stem_conv_relu(*args)
    assert (real.shape, real.stride(), real.dtype) == (traced.shape, traced.stride(), traced.dtype)


X = torch.rand(2, 3, 5, 5)
WEIGHT, BIAS = torch.rand(8, 3, 3, 3), torch.rand(8)


def convolve(**changes: Any) -> None:
    channel = torch.ones(3)
    ops.stem_conv_relu(
        **{"x": X, "mean": channel, "std": channel, "weight": WEIGHT, "bias": BIAS, **changes}
    )


def step(**changes: Any) -> None:
    grad = torch.rand(2, 8, 5, 5)
    arguments = {"x_adv": X.clone(), "grad": grad, "weight": WEIGHT, "x": X, "eps": 0.1}
    ops.stem_conv_step_(**{**arguments, "alpha": 0.1, **changes})


BAD: list[tuple[Callable[..., None], dict[str, Any], type[Exception], str]] = [
    (convolve, {"x": [0.5]}, TypeError, r"^x: list, expected a torch\.Tensor"),
    (convolve, {"x": X.half()}, TypeError, r"^x: dtype torch.float16, expected float32"),
    (convolve, {"x": X[0]}, ValueError, r"^x: shape \(3, 5, 5\), expected \[N, C, H, W\]"),
    (convolve, {"x": torch.rand(2, 5, 4, 4)}, ValueError, r"^x: shape \(2, 5, .* 1 to 4 channels"),
    (convolve, {"x": X[:, :, :0]}, ValueError, r"^x: shape \(2, 3, 0, 5\), expected"),
    (convolve, {"mean": torch.ones(2)}, ValueError, r"^mean: shape \(2,\) on cpu, expected \[3\]"),
    (convolve, {"std": torch.ones(3).half()}, TypeError, r"^std: dtype torch.float16, expected"),
    (convolve, {"std": 1.0}, TypeError, r"^std: float, expected a torch\.Tensor"),
    (convolve, {"bias": BIAS.half()}, TypeError, r"^bias: dtype torch.float16, .* weight"),
    (convolve, {"bias": BIAS[:3]}, ValueError, r"^bias: shape \(3,\) on cpu, expected \[8\]"),
    (convolve, {"floor": 1.0, "ceiling": 0.0}, ValueError, r"^floor, ceiling: 1\.0, 0\.0, "),
    (convolve, {"floor": math.nan}, ValueError, r"^floor, ceiling: nan, inf, expected"),
    (convolve, {"mean": torch.ones(3, device="meta")}, ValueError, r"^mean: .* on meta, expected"),
    (step, {"x_adv": X.double()}, TypeError, r"^x_adv: dtype torch.float64, expected that of x"),
    (step, {"x_adv": X[:1].clone()}, ValueError, r"^x_adv: shape \(1, 3, 5, 5\), expected that"),
    (step, {"x_adv": X.clone().requires_grad_()}, ValueError, r"^x_adv: requires grad"),
    (step, {"grad": torch.rand(2, 8, 5, 4)}, ValueError, r"^grad: shape .*\(2, 8, 5, 5\) on cpu"),
    (step, {"grad": torch.rand(2, 8, 5, 5).half()}, TypeError, r"^grad: dtype .* that of weight"),
    (step, {"eps": -0.1}, ValueError, r"^eps: -0\.1, expected a number >= 0"),
    (step, {"eps": torch.tensor([0.1, -1.0])}, ValueError, r"^eps: -1\.0 at index 1, expected"),
    (step, {"alpha": 0.0}, ValueError, r"^alpha: 0\.0, expected a number > 0"),
    (step, {"lo": 1.0, "hi": 0.0}, ValueError, r"^lo, hi: 1\.0, 0\.0, expected lo <= hi"),
    (step, {"stats": torch.zeros(3, dtype=torch.int64)}, ValueError, r"^stats: shape \(3,\)"),
]


@pytest.mark.parametrize(("op", "changes", "error", "message"), BAD)
def test_bad_arguments(
    op: Callable[..., None], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        op(**changes)


@pytest.mark.parametrize("op", [convolve, step])
@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.rand(12, 3, 3, 3), ValueError, r"shape \(12, .* with O a multiple of 8"),
        (torch.rand(0, 3, 3, 3), ValueError, r"shape \(0, .* with O a multiple of 8"),
        (torch.rand(8, 2, 3, 3), ValueError, r"shape \(8, 2, 3, 3\), expected \[O, 3, 3, 3\]"),
        (torch.rand(8, 3, 5, 5), ValueError, r"shape \(8, 3, 5, 5\), expected \[O, 3, 3, 3\]"),
        (torch.tensor(1.0), ValueError, r"shape \(\), expected \[O, 3, 3, 3\]"),
        (WEIGHT.double(), TypeError, r"dtype torch.float64, expected float32, float16 or bfloat16"),
        (WEIGHT.to("meta"), ValueError, r"device meta, expected cpu"),
        (None, TypeError, r"NoneType, expected a torch\.Tensor"),
    ],
)
def test_a_bad_weight(
    op: Callable[..., None], weight: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^weight: {message}"):
        op(weight=weight)


@pytest.mark.parametrize("side", [2, 3])
def test_a_kernel_the_wrong_way_round_would_show(side: int) -> None:
    """What the tests above rely on."""
    wrong = ModuleType("wrong")

    def convolution(x: Tensor, mean: Tensor, std: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return reference.stem_conv_relu(x, mean, std, weight.flip(side), *rest)

    def steps(x_adv: Tensor, grad: Tensor, weight: Tensor, *rest: Any) -> None:
        reference.stem_conv_step_(x_adv, grad, weight.flip(side), *rest)

    vars(wrong).update(stem_conv_relu=convolution, stem_conv_step_=steps)
    case = Stem((3, 8, 5, 7), torch.bfloat16)
    with pytest.raises(AssertionError):
        assert_forward_right(case, wrong)
    with pytest.raises(AssertionError):
        assert_step_right(case, wrong)
