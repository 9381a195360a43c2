"""The stem's ops on the GPU: right to the error of a float32 sum, the step bit for bit; one launch each, in graphs."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from iaat_fast import ops
from iaat_fast.ops import reference
from tests.ops.stem_cases import (
    HALF,
    LAYOUTS,
    SHAPES,
    Stem,
    assert_forward_right,
    assert_step_right,
)

pytestmark = pytest.mark.gpu

dtypes = pytest.mark.parametrize("dtype", HALF, ids=lambda d: str(d).removeprefix("torch."))
layouts = pytest.mark.parametrize("layout", LAYOUTS)
shapes = pytest.mark.parametrize("shape", [*SHAPES, (3, 64, 224, 224), (3, 24, 7, 130)], ids=str)


@dtypes
@layouts
@shapes
@pytest.mark.parametrize("k", [1, 3])
def test_both_are_right(
    kernels: ModuleType,
    dtype: torch.dtype,
    layout: str,
    shape: tuple[int, int, int, int],
    k: int,
    device: torch.device,
) -> None:
    case = Stem(shape, dtype, k=k, layout=layout, device=device)
    assert_forward_right(case, kernels)
    assert_step_right(case, kernels, targeted=k == 3)
    assert_step_right(case, kernels, counted=False)


@dtypes
@pytest.mark.parametrize("shape", [(3, 8, 9, 7), (3, 64, 32, 32), (3, 16, 5, 70)], ids=str)
def test_nan_stays_nan(
    kernels: ModuleType, dtype: torch.dtype, shape: tuple[int, int, int, int], device: torch.device
) -> None:
    case = Stem(shape, dtype, k=3, poisoned=True, device=device)
    assert_forward_right(case, kernels)
    assert_step_right(case, kernels)


def test_bounds_of_the_result(kernels: ModuleType, device: torch.device) -> None:
    case = Stem((3, 64, 32, 32), torch.bfloat16, device=device)
    assert_forward_right(case, kernels, -math.inf, math.inf)
    assert_forward_right(case, kernels, -0.25, 1.0)


def test_float32_is_torchs_convolution(kernels: ModuleType, device: torch.device) -> None:
    args = Stem((3, 64, 32, 32), torch.float32, k=3, device=device).forward_args()
    torch.testing.assert_close(kernels.stem_conv_relu(*args), reference.stem_conv_relu(*args))


def test_a_step_and_a_convolution_in_one_graph(kernels: ModuleType, device: torch.device) -> None:
    """Replayed on other images and gradients, of which nothing is remembered."""
    case = Stem((3, 64, 32, 32), torch.bfloat16, k=3, device=device)
    stats = torch.zeros(2, dtype=torch.int64, device=device)
    step = list(case.step_args(False, stats))

    def both() -> torch.Tensor:
        kernels.stem_conv_step_(*step)
        return kernels.stem_conv_relu(step[0], *case.forward_args()[1:])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both()
    for seed in (0, 1):
        generator = torch.Generator(device).manual_seed(seed)
        case.grad.copy_(torch.randn(case.grad.shape, generator=generator, device=device))
        step[0].copy_(case.x_adv)
        stats.zero_()
        graph.replay()
        found = step[0].clone(), out.clone(), stats.clone()
        step[0].copy_(case.x_adv)
        stats.zero_()
        right = both()
        for ours, theirs in zip(found, (step[0], right, stats), strict=True):
            assert torch.equal(ours, theirs)
        assert_step_right(case, kernels)


def test_one_launch_each(kernels: ModuleType, device: torch.device) -> None:
    case = Stem((3, 64, 32, 32), torch.bfloat16, k=3, device=device)
    calls: dict[str, Any] = {
        "conv_relu": lambda: kernels.stem_conv_relu(*case.forward_args()),
        "conv_step": lambda: kernels.stem_conv_step_(*step),
    }
    step = case.step_args(False, torch.zeros(2, dtype=torch.int64, device=device))
    if kernels.stem_conv_relu is reference.stem_conv_relu:
        pytest.skip("Triton is not installed")
    for name, call in calls.items():
        call()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        launched = [e.key for e in profile.key_averages() if e.device_time_total > 0]
        assert len(launched) == 1, launched
        assert name in launched[0]


@dtypes
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    case = Stem((3, 8, 5, 7), dtype, k=2, device=device)
    torch.library.opcheck(torch.ops.iaat_fast.stem_conv_relu, case.forward_args())
    stats = torch.zeros(2, dtype=torch.int64, device=device)
    torch.library.opcheck(torch.ops.iaat_fast.stem_conv_step_, case.step_args(False, stats))


def test_another_device_is_named(device: torch.device) -> None:
    case = Stem((3, 8, 5, 7), torch.bfloat16, device=device)
    with pytest.raises(ValueError, match=r"^weight: device cpu, expected cuda"):
        ops.stem_conv_relu(case.x, case.mean, case.std, case.weight.cpu(), case.bias)
