"""The native kernels give what the reference defines: the same bits, on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iaat_fast.ops import reference

native = pytest.importorskip("iaat_fast.ops.native")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(5, 1), (4, 63), (2, 3, 32, 32), (3, 1000), (0, 3, 8, 8), (3, 0)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: (
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    ),
    "every_second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
candidates = pytest.mark.parametrize("k", [1, 3])


def assert_same(name: str, expected: Tensor, actual: Tensor) -> None:
    """The same dtype, strides and values, NaN where NaN is expected."""
    assert actual.dtype is expected.dtype, name
    assert actual.stride() == expected.stride(), name
    different = ~((expected == actual) | (expected.isnan() & actual.isnan()))
    assert not different.any(), (
        f"{name}: {int(different.sum())} of {different.numel()} entries differ, "
        f"first {expected[different][0]} against {actual[different][0]}"
    )


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


class Images:
    """x in [0, 1]; x_adv round it, partly outside ball and box, with NaN and infinity; gradients with 0 and NaN."""

    def __init__(
        self, shape: tuple[int, ...], k: int, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
    ) -> None:
        generator = torch.Generator().manual_seed(len(shape) + shape[-1] + k)
        rows = (k * shape[0], *shape[1:])

        def rand(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, dtype=torch.float64)

        x = rand(*shape)
        x_adv = x.repeat(k, *[1] * (len(shape) - 1)) + 0.8 * (rand(*rows) - 0.5)
        grad = rand(*rows) - 0.5
        grad[rand(*rows) < 0.1] = 0.0
        for target, value, share in ((x_adv, math.nan, 0.01), (x_adv, math.inf, 0.01)):
            target[rand(*rows) < share] = value
        grad[rand(*rows) < 0.05] = math.nan
        self.x, self.x_adv, self.grad = (layout(t.to(dtype)) for t in (x, x_adv, grad))
        radii = torch.tensor([0.0, 8 / 255, 0.3, 1e-9, 2.0], dtype=arithmetic(dtype))
        self.eps = radii.repeat(rows[0])[: rows[0]]
        self.alpha = self.eps / 4 + (self.eps > 0) * 0.01


@dtypes
@shapes
@candidates
@layouts
def test_project_linf(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], k: int, layout: Callable[[Tensor], Tensor]
) -> None:
    case = Images(shape, k, dtype, layout)
    args = (case.x_adv, case.x, case.eps, 0.1, 0.9)
    assert_same("projection", reference.project_linf(*args), native.project_linf(*args))


@dtypes
@shapes
@candidates
@layouts
@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_step_linf(
    isa: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    k: int,
    layout: Callable[[Tensor], Tensor],
    targeted: bool,
) -> None:
    case = Images(shape, k, dtype, layout)
    results = []
    for backend in (reference, native):
        x_adv, stats = case.x_adv.clone(), torch.tensor([7, 9])
        args = (x_adv, case.grad, case.x, case.eps, case.alpha, 0.1, 0.9, targeted, stats)
        backend.pgd_step_linf_(*args)
        results.append((x_adv, stats))
    assert_same("x_adv", results[0][0], results[1][0])
    assert_same("stats", results[0][1], results[1][1])


@dtypes
@shapes
@candidates
@layouts
def test_random_start_linf(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], k: int, layout: Callable[[Tensor], Tensor]
) -> None:
    case = Images(shape, k, dtype, layout)
    index = torch.arange(shape[0]) * 12345 + 2**31
    args = (case.x, case.eps, torch.tensor([-(2**40) + 3, 2, 1]), index, 0.1, 0.9)
    assert_same("start", reference.random_start_linf(*args), native.random_start_linf(*args))


@dtypes
@candidates
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_ce_cotangent(isa: str, dtype: torch.dtype, k: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(6 * k, classes, generator=generator)
    logits[:, -1:][1::3] = -math.inf if classes > 1 else 0.0
    logits = logits.to(dtype)
    y = torch.randint(classes, (6,), generator=generator)
    y[:3] = logits[:3].argmax(1)
    expected = reference.ce_cotangent(logits, y, False)
    actual = native.ce_cotangent(logits, y, False)
    if dtype is torch.float64:  # the two call different exponentials
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(actual, expected, rtol=8 * ulp, atol=0.0)
    else:
        assert_same("cotangent", expected, actual)


@dtypes
@pytest.mark.parametrize("samples", [0, 1, 200])
@pytest.mark.parametrize("clamp_candidate", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_select_epsilon(
    isa: str, dtype: torch.dtype, samples: int, clamp_candidate: bool, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(samples)
    logits = torch.randn(3 * samples, 4, generator=generator).round().to(dtype)  # with ties
    y = torch.randint(4, (samples,), generator=generator)
    index = torch.randperm(300, generator=generator)[:samples]
    mask = torch.rand(samples, generator=generator) < 0.3 if masked else None
    memory = 0.1 * torch.rand(300, generator=generator)
    results = []
    for backend in (reference, native):
        updated = memory.clone()
        args = (updated, index, logits, y, 0.03, 0.1, 0.01, 0.09, clamp_candidate, mask)
        results.append((updated, *backend.select_epsilon_(*args)))
    for name, expected, actual in zip(("memory", "eps", "choice"), *results, strict=True):
        assert_same(name, expected, actual)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    """Above the grain size of 32768 elements the rows are split over threads, in the middle of a row where it falls."""
    case = Images((7, 20011), 3, torch.float32, LAYOUTS["contiguous"])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        args = (case.x_adv, case.x, case.eps, 0.1, 0.9)
        assert_same("projection", reference.project_linf(*args), native.project_linf(*args))
        x_adv, other, stats, other_stats = (
            t.clone()
            for t in (case.x_adv, case.x_adv, torch.zeros(2).long(), torch.zeros(2).long())
        )
        rest = (case.grad, case.x, case.eps, case.alpha, 0.0, 1.0, False)
        reference.pgd_step_linf_(x_adv, *rest, stats)
        native.pgd_step_linf_(other, *rest, other_stats)
        assert_same("x_adv", x_adv, other)
        assert_same("stats", stats, other_stats)
        start = (case.x, case.eps, torch.tensor([1]), torch.arange(7), 0.0, 1.0)
        assert_same("start", reference.random_start_linf(*start), native.random_start_linf(*start))
    finally:
        torch.set_num_threads(before)


def test_every_half_precision_number_is_read_and_rounded_as_torch_does(isa: str) -> None:
    """All 2**16 patterns of either half type pass through a projection that changes none of them but NaN."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, -1)
        x = x[:, x[0].isfinite()]
        args = (x, torch.zeros_like(x), torch.tensor([math.inf]), -math.inf, math.inf)
        assert_same(str(dtype), x, native.project_linf(*args))
