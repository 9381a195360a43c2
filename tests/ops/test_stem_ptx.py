"""What the stem's Triton kernels become for sm_80 and sm_90: tensor cores, 16-byte accesses, no spill."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from iaat_fast.ops.triton import stem  # noqa: E402
from tests.ops.test_triton_ptx import (  # noqa: E402
    CUDA,
    MI300,
    VECTOR_LOAD,
    VECTOR_STORE,
    Machine,
    capabilities,
    compiled,
)

pytestmark = [
    pytest.mark.slow,  # the kernels are compiled
    pytest.mark.triton,
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the kernels are interpreted"),
]

# (C, O, H, W): CIFAR and ImageNet sizes, one channel, four, a wide network's stem, the smallest O.
SHAPES = [(3, 64, 32, 32), (3, 64, 224, 224), (1, 16, 28, 28), (4, 64, 32, 32), (3, 160, 32, 32)]
SHAPES += [(3, 8, 5, 7)]
CASES = [(shape, torch.bfloat16, torch.contiguous_format) for shape in SHAPES]
CASES += [
    ((3, 64, 32, 32), torch.float16, torch.contiguous_format),
    ((3, 64, 32, 32), torch.bfloat16, torch.channels_last),
    ((3, 64, 224, 224), torch.float16, torch.channels_last),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
Case = tuple[tuple[int, int, int, int], torch.dtype, torch.memory_format]
N = 4
PRODUCT = {80: r"mma\.sync\.aligned\.m16n8k16\.\S*f32\.", 90: r"wgmma\.mma_async\.sync\.aligned"}


@functools.cache
def forward(
    target: object,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.bfloat16,
    layout: torch.memory_format = torch.contiguous_format,
) -> Machine:
    channels, outputs, height, width = shape
    x = torch.zeros(N, channels, height, width).contiguous(memory_format=layout)
    weight, channel = torch.zeros(outputs, channels, 3, 3, dtype=dtype), torch.ones(channels)
    args = (x, channel, channel, weight, weight[:, 0, 0, 0].contiguous(), 0.0, float("inf"))
    return compiled(stem, "stem_conv_relu_kernel", lambda: stem.stem_conv_relu(*args), target)


@functools.cache
def backward(
    target: object,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.bfloat16,
    layout: torch.memory_format = torch.contiguous_format,
) -> Machine:
    channels, outputs, height, width = shape
    x = torch.zeros(N, channels, height, width).contiguous(memory_format=layout)
    grad = torch.zeros(N, outputs, height, width, dtype=dtype)
    grad = grad.contiguous(memory_format=torch.channels_last)
    weight, radius = torch.zeros(outputs, channels, 3, 3, dtype=dtype), torch.ones(N)
    stats = torch.zeros(2, dtype=torch.int64)
    args = (x.clone(), grad, weight, x, radius, radius, 0.0, 1.0, False, stats)
    return compiled(stem, "stem_conv_step_kernel", lambda: stem.stem_conv_step_(*args), target)


@capabilities
@cases
@pytest.mark.parametrize("kernel", [forward, backward])
def test_tensor_cores_multiply_and_nothing_spills(
    kernel: Callable[..., Machine],
    capability: int,
    case: Case,
    tmp_path: Path,
) -> None:
    machine = kernel(CUDA[capability], *case)
    assert machine.count(PRODUCT[capability]) > 0
    half = {torch.bfloat16: r"\.bf16\.bf16", torch.float16: r"\.f16\.f16"}[case[1]]
    assert machine.count(half) > 0
    used = machine.resources(tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    # 255 is what a thread can have; 2 blocks of 128 threads on a processor are what the walk down the rows needs.
    assert 0 < used["REG"] <= 208


@capabilities
@cases
def test_the_feature_maps_are_written_16_bytes_at_a_time(capability: int, case: Case) -> None:
    machine = forward(CUDA[capability], *case)
    block = stem._block(case[0][1])
    tile = stem._PIXELS * block * 2 // (16 * 128)  # of 128 threads
    assert machine.count(VECTOR_STORE) == tile
    assert machine.count(r"st\.global\.(?!v4\.b32|v2\.b64)") == 0


@capabilities
@cases
def test_the_gradient_is_read_once_16_bytes_at_a_time(capability: int, case: Case) -> None:
    """Straight into shared memory, two rows ahead of the products."""
    machine = backward(CUDA[capability], *case)
    block = stem._block(case[0][1])
    vectors = max(1, stem._LINE * block * 2 // (16 * 128))
    asynchronous = machine.count(r"cp\.async\.c[ag]\.shared\.global[^;]*0x10,")
    # In the loop over rows, and twice before it; of a wider stem in that over outputs, and once before it.
    assert asynchronous == vectors * (3 if block >= case[0][1] else 2)
    assert machine.count(VECTOR_LOAD) == 0


@pytest.mark.parametrize("kernel", [forward, backward])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (3, 8, 1, 5), (3, 8, 5, 1)], ids=str)
def test_sizes_of_one_compile(
    kernel: Callable[..., Machine], shape: tuple[int, int, int, int]
) -> None:
    """Triton turns an argument that is 1 into a constant, which has not all that a tensor has."""
    assert kernel(CUDA[90], shape).text


@pytest.mark.parametrize("kernel", [forward, backward])
def test_both_compile_for_an_amd_gpu(kernel: Callable[..., Machine]) -> None:
    assert kernel(MI300, (3, 64, 32, 32)).count(r"v_mfma_f32_\w*bf16") > 0
