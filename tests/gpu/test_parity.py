"""Every backend gives on the GPU the bits of the reference, there and on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from iaat_fast.ops import reference

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ON_IMAGES = ["project_linf", "pgd_step_linf_", "random_start_linf"]
# With the position of the argument that may be missing: a second gradient, or what a branch adds.
BRANCHES = {"relu_backward_": 2, "scale_shift_relu": 1, "scale_shift_relu_backward_": 3}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
images = pytest.mark.parametrize("op", ON_IMAGES)
layers = pytest.mark.parametrize("op", BRANCHES)

Arguments = Callable[..., tuple[Any, ...]]
On = Callable[[tuple[Any, ...]], tuple[Any, ...]]


@images
@dtypes
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "shape", [(5, 1), (4, 63), (2, 3, 32, 32), (7, 3, 5, 7), (3, 40_009), (0, 3, 8, 8), (3, 0)]
)
def test_images(
    backend: ModuleType,
    op: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    k: int,
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = arguments(op, dtype=dtype, shape=shape, k=k)
    result = outcome(backend, op, on(args))
    assert_same(outcome(reference, op, on(args)), result)
    assert_same(outcome(reference, op, args), result)


@images
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("layout", ["channels_last", "misaligned", "batch_slice", "every_second"])
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (4, 3, 5, 7), (3, 4, 6, 6)])
def test_layouts(
    backend: ModuleType,
    op: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    k: int,
    layout: str,
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = arguments(op, dtype=dtype, shape=shape, k=k, layout=layout)
    result = outcome(backend, op, on(args))
    assert_same(outcome(reference, op, on(args)), result)
    assert_same(outcome(reference, op, args), result)


# Channels in vectors of one, of neighbours, and changing within a vector; long enough for second turns of the threads.
@layers
@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned", "every_second"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (3, 3, 5, 7), (5, 64, 4, 4), (3, 65, 9, 5), (64, 64, 33, 31), (0, 3, 8, 8)],
    ids=str,
)
def test_layers(
    backend: ModuleType,
    op: str,
    dtype: torch.dtype,
    layout: str,
    shape: tuple[int, ...],
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = arguments(op, dtype=dtype, shape=shape, layout=layout)
    place = BRANCHES[op]
    for given in (args, (*args[:place], None, *args[place + 1 :])):
        result = outcome(backend, op, on(given))
        assert_same(outcome(reference, op, on(given)), result)
        assert_same(outcome(reference, op, given), result)


@layers
@pytest.mark.parametrize("shape", [(5, 64), (4, 3), (3, 0), (2, 3, 2, 3, 4)], ids=str)
def test_layers_of_other_dimensions(
    backend: ModuleType,
    op: str,
    shape: tuple[int, ...],
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = arguments(op, dtype=torch.bfloat16, shape=shape)
    result = outcome(backend, op, on(args))
    assert_same(outcome(reference, op, args), result)


@pytest.mark.parametrize(
    ("activation", "ceiling"), [(torch.relu, math.inf), (torch.nn.functional.relu6, 6.0)]
)
@dtypes
def test_the_mask_is_autograds(
    backend: ModuleType,
    activation: Any,
    ceiling: float,
    dtype: torch.dtype,
    arguments: Arguments,
    on: On,
) -> None:
    grad, x, *_ = on(arguments("relu_backward_", dtype=dtype))
    x[0, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf, 0, 6, -0.0, 7, -7], dtype=dtype)
    x.requires_grad_()
    out = activation(x)
    (expected,) = torch.autograd.grad(out, x, grad)
    backend.relu_backward_(grad, out.detach(), None, 0.0, ceiling)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_steps_up_and_down_with_and_without_counts(
    backend: ModuleType,
    targeted: bool,
    counted: bool,
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = arguments("pgd_step_linf_", k=3)
    args = (*args[:7], targeted, args[8] if counted else None)
    expected = outcome(reference, "pgd_step_linf_", args)
    assert len(expected) == 1 + counted
    assert_same(expected, outcome(backend, "pgd_step_linf_", on(args)))


@dtypes
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 1000, 1024, 1025, 5000])
def test_ce_cotangent(
    backend: ModuleType,
    dtype: torch.dtype,
    k: int,
    classes: int,
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    """Of the same device only: torch's exponential is another on the CPU."""
    args = on(arguments("ce_cotangent", dtype=dtype, shape=(7, 1), k=k, classes=classes))
    expected = outcome(reference, "ce_cotangent", args)
    # In float64 the reference takes torch's exponential, a kernel the C library's.
    ulps = 8 if dtype is torch.float64 else 0
    assert_same(expected, outcome(backend, "ce_cotangent", args), ulps=ulps)


def test_ce_cotangent_is_autograds_gradient_up_to_a_power_of_two(
    backend: ModuleType, device: torch.device
) -> None:
    logits = torch.randn(128, 10, device=device, requires_grad=True)
    y = torch.randint(10, (128,), device=device)
    torch.nn.functional.cross_entropy(logits, y, reduction="sum").backward()
    ratio = backend.ce_cotangent(logits.detach(), y, False) / logits.grad
    assert torch.equal(ratio, ratio[:, :1].expand_as(ratio))
    assert (torch.frexp(ratio).mantissa == 0.5).all()


@dtypes
@pytest.mark.parametrize("n", [0, 1, 200])
@pytest.mark.parametrize("classes", [1, 4, 10, 1000])
@pytest.mark.parametrize("clamp_candidate", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_select_epsilon(
    backend: ModuleType,
    dtype: torch.dtype,
    n: int,
    classes: int,
    clamp_candidate: bool,
    masked: bool,
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = arguments("select_epsilon_", dtype=dtype, shape=(n, 1), classes=classes)
    args = (*args[:8], clamp_candidate, args[9] if masked else None)
    result = outcome(backend, "select_epsilon_", on(args))
    assert_same(outcome(reference, "select_epsilon_", args), result)


def test_the_first_nan_logit_is_the_largest(
    backend: ModuleType, arguments: Arguments, on: On, outcome: Any, assert_same: Any
) -> None:
    memory, index, logits, y, *rest = arguments("select_epsilon_", shape=(50, 1), classes=40)
    rows = torch.arange(150)
    logits[rows, (7 * rows) % 40] = math.nan
    logits[rows[::3], (11 * rows[::3] + 5) % 40] = math.nan
    y[::2] = logits[:50:2].isnan().int().argmax(1)
    args = on((memory, index, logits, y, *rest))
    choices = outcome(backend, "select_epsilon_", args)
    assert_same(outcome(reference, "select_epsilon_", args), choices)
    assert (choices[2][::2] == 0).all()  # robust at the largest candidate


@pytest.mark.parametrize("shape", [(6, 3, 32, 32), (6, 1, 28, 28), (6, 3, 9, 5), (6, 4, 33, 31)])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (0, False), (0, True), (2, False)])
def test_random_crop_flip(
    backend: ModuleType,
    shape: tuple[int, ...],
    padding: int,
    flip: bool,
    arguments: Arguments,
    on: On,
    outcome: Any,
    assert_same: Any,
) -> None:
    args = (*arguments("random_crop_flip", shape=shape)[:3], padding, flip)
    result = outcome(backend, "random_crop_flip", on(args))
    assert_same(outcome(reference, "random_crop_flip", args), result)


def test_the_last_digits_of_every_pixel(backend: ModuleType, device: torch.device) -> None:
    images = torch.arange(256, dtype=torch.uint8, device=device).view(1, 16, 16, 1)
    index, seed = torch.zeros(1).long().to(device), torch.zeros(1).long().to(device)
    scaled = backend.random_crop_flip(images, index, seed, 0, False)
    assert torch.equal(scaled.cpu().flatten(), torch.arange(256) / torch.tensor(255.0))


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_the_missing_entries_of_a_seed_are_zero(
    backend: ModuleType, entries: int, arguments: Arguments, on: On
) -> None:
    x, eps, _, index, lo, hi = on(arguments("random_start_linf", k=3))
    seed = torch.tensor([5, 1, 4])[:entries]
    full = torch.cat([seed, seed.new_zeros(3 - entries)])
    args = (index, lo, hi)
    short = backend.random_start_linf(x, eps, seed.to(x.device), *args)
    assert torch.equal(short, backend.random_start_linf(x, eps, full.to(x.device), *args))


def test_every_half_precision_number_is_read_and_rounded_as_torch_does(
    backend: ModuleType, device: torch.device
) -> None:
    """All 2**16 patterns of either half type pass through a projection that changes none of them but NaN."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, -1)
        x = x[:, x[0].isfinite()].to(device)
        radius = torch.tensor([math.inf], device=device)
        out = backend.project_linf(x, torch.zeros_like(x), radius, -math.inf, math.inf)
        assert torch.equal(out, x)


def test_counts_add_up_over_many_blocks(backend: ModuleType, device: torch.device) -> None:
    """More elements than one block or a float32 could count, in rows that straddle every vector."""
    x = torch.rand(41, 999_983, device=device)
    grad = torch.ones_like(x)
    grad.view(-1)[::3] = 0.0
    grad.view(-1)[1::3] = math.nan
    zeros = -(-x.numel() // 3)
    nans = -(-(x.numel() - 1) // 3)
    radii, stats = torch.full((41,), 0.1, device=device), torch.tensor([1, 2], device=device)
    backend.pgd_step_linf_(x.clone(), grad, x, radii, radii, 0.0, 1.0, False, stats)
    assert stats.tolist() == [zeros + 1, nans + 2]


@pytest.mark.timeout(110)
@images
def test_more_elements_than_31_bits_number(
    kernels: ModuleType, op: str, device: torch.device
) -> None:
    """2**31 elements and some, in rows of odd length; the first and last rows against the reference."""
    rows, length, edge = 2_100_001, 1027, 500
    if torch.cuda.mem_get_info(device)[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory on the device")
    x = torch.rand(rows, length, dtype=torch.bfloat16, device=device)
    assert x.numel() > 2**31
    eps = torch.rand(rows, device=device) / 8
    index, seed = torch.arange(rows, device=device), torch.tensor([3, 1, 2], device=device)
    ends = [slice(0, edge), slice(rows - edge, rows)]
    if op == "random_start_linf":
        out = kernels.random_start_linf(x, eps, seed, index, 0.0, 1.0)
        expected = [
            reference.random_start_linf(x[e], eps[e], seed, index[e], 0.0, 1.0) for e in ends
        ]
    else:
        out = torch.rand_like(x)
        if op == "project_linf":
            expected = [reference.project_linf(out[e], x[e], eps[e], 0.0, 1.0) for e in ends]
            out = kernels.project_linf(out, x, eps, 0.0, 1.0)
        else:
            grad = torch.rand_like(x).sub_(0.5)
            expected = [out[e].clone() for e in ends]
            for end, rows_there in zip(ends, expected, strict=True):
                edge_args = (grad[end], x[end], eps[end], eps[end] / 4, 0.0, 1.0, False, None)
                reference.pgd_step_linf_(rows_there, *edge_args)
            kernels.pgd_step_linf_(out, grad, x, eps, eps / 4, 0.0, 1.0, False, None)
    for end, rows_there in zip(ends, expected, strict=True):
        assert torch.equal(out[end], rows_there)


@pytest.mark.timeout(110)
@layers
@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_of_more_elements_than_31_bits_number(
    kernels: ModuleType, op: str, channels_last: bool, device: torch.device
) -> None:
    """2**31 elements and some; the first and last rows against the reference."""
    shape = (1025, 64, 181, 181) if channels_last else (1025, 65, 181, 179)
    if torch.cuda.mem_get_info(device)[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory on the device")
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def values() -> torch.Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16, device=device, memory_format=layout)
        return empty.uniform_(-1, 1)

    first, second, branch = values(), values(), values()
    assert first.numel() > 2**31
    scale, shift = torch.randn(2, shape[1], device=device)
    rest = {
        "relu_backward_": lambda rows: (second[rows], branch[rows], 0.0, 0.5),
        "scale_shift_relu": lambda rows: (branch[rows], scale, shift, 0.0, math.inf),
        "scale_shift_relu_backward_": lambda rows: (second[rows], scale, branch[rows], 0.0, 0.5),
    }[op]
    ends = [slice(0, 2), slice(shape[0] - 2, shape[0])]
    expected = []
    for end in ends:
        written = first[end].clone()
        expected.append((written, getattr(reference, op)(written, *rest(end))))
    returned = getattr(kernels, op)(first, *rest(slice(None)))
    for end, (written, result) in zip(ends, expected, strict=True):
        assert torch.equal(first[end], written)
        if result is not None:
            assert torch.equal(returned[end], result)
