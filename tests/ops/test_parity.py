"""The native kernels give what the reference defines: the same bits, on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iaat_fast.ops import reference
from tests.folded import every, rotated
from tests.ops.cases import (
    CANDIDATES,
    LAYOUTS,
    Images,
    Layer,
    Selection,
    assert_same,
    bounds_in_turn,
    dtypes,
    layer_shapes,
    logits_and_classes,
    shapes,
)

native = pytest.importorskip("iaat_fast.ops.native.cpu")


@dtypes
@shapes
@every(k=CANDIDATES, layout=LAYOUTS)
def test_project_linf(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], k: int, layout: Callable[[Tensor], Tensor]
) -> None:
    case = Images(shape, k, dtype, layout)
    args = (case.x_adv, case.x, case.eps, 0.1, 0.9)
    assert_same("projection", reference.project_linf(*args), native.project_linf(*args))


@dtypes
@shapes
@every(k=CANDIDATES, layout=LAYOUTS, targeted=[False, True])
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
@every(k=CANDIDATES, layout=LAYOUTS)
def test_random_start_linf(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], k: int, layout: Callable[[Tensor], Tensor]
) -> None:
    case = Images(shape, k, dtype, layout)
    index = torch.arange(shape[0]) * 12345 + 2**31
    args = (case.x, case.eps, torch.tensor([-(2**40) + 3, 2, 1]), index, 0.1, 0.9)
    assert_same("start", reference.random_start_linf(*args), native.random_start_linf(*args))


@dtypes
@every(k=CANDIDATES, classes=[1, 2, 10, 1000], scale=[0.0, 1.0, 30.0, 1e4])
def test_ce_cotangent(isa: str, dtype: torch.dtype, k: int, classes: int, scale: float) -> None:
    logits, y = logits_and_classes(k, classes, scale, dtype)
    expected = reference.ce_cotangent(logits, y, False)
    actual = native.ce_cotangent(logits, y, False)
    if dtype is torch.float64:  # the two call different exponentials
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(actual, expected, rtol=8 * ulp, atol=0.0)
    else:
        assert_same("cotangent", expected, actual)


@dtypes
@every(samples=[0, 1, 200], clamp_candidate=[False, True], masked=[False, True])
def test_select_epsilon(
    isa: str, dtype: torch.dtype, samples: int, clamp_candidate: bool, masked: bool
) -> None:
    case = Selection(samples, dtype)
    mask = case.misclassified if masked else None
    results = []
    for backend in (reference, native):
        memory = case.memory.clone()
        args = (memory, case.index, case.logits, case.y)
        options = (0.03, 0.1, 0.01, 0.09, clamp_candidate, mask)
        results.append((memory, *backend.select_epsilon_(*args, *options)))
    for name, expected, actual in zip(("memory", "eps", "choice"), *results, strict=True):
        assert_same(name, expected, actual)


@dtypes
@layer_shapes
@every(layout=LAYOUTS, branch=[False, True])
def test_the_passes_of_a_network(
    isa: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: Callable[[Tensor], Tensor],
    branch: bool,
) -> None:
    bounds = bounds_in_turn(dtype, branch)
    Layer(shape, dtype, layout).assert_same(native, *bounds, branch=branch)


@pytest.mark.parametrize(
    ("shape", "threads", "layout"),
    rotated(
        [(3, 65, 19, 17), (5, 1, 99, 101), (40009, 3)], [1, 2, 3], ["contiguous", "channels_last"]
    ),
    ids=str,
)
def test_threads_that_begin_within_a_channel(
    shape: tuple[int, ...], threads: int, layout: str
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        case = Layer(shape, torch.float32, LAYOUTS[layout])
        case.assert_same(native, (0.0, math.inf), branch=True)
    finally:
        torch.set_num_threads(before)


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
