"""What the Triton kernels of a network's passes become for sm_80 and sm_90: 16-byte accesses, no spill, no FMA."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402

from iaat_fast.ops.triton import common, layers  # noqa: E402
from tests.folded import rotated  # noqa: E402
from tests.ops.cases import DTYPES, LAYOUTS, Layer, branches, dtypes  # noqa: E402
from tests.ops.test_triton_ptx import (  # noqa: E402
    CUDA,
    MI300,
    VECTOR_LOAD,
    VECTOR_STORE,
    VECTORS,
    Machine,
    capabilities,
    compiled,
)

pytestmark = [
    pytest.mark.slow,  # the kernels are compiled
    pytest.mark.triton,
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the kernels are interpreted"),
]

# Channels in vectors of one; in vectors of neighbours.
PLACES = {
    "contiguous": ((8, 64, 16, 16), "contiguous"),
    "channels_last": ((8, 64, 16, 16), "channels_last"),
}
places = pytest.mark.parametrize(("shape", "layout"), PLACES.values(), ids=PLACES.keys())
SINGLE = r"ld\.global\.b(?:16|32|64)"


@functools.cache
def layer(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Layer:
    """Launches are only recorded: one serves all."""
    return Layer(shape, dtype, LAYOUTS[layout])


def mask(
    target: GPUTarget, shape: tuple[int, ...], layout: str, dtype: torch.dtype, *, branch: bool
) -> Machine:
    case = layer(shape, dtype, layout)
    args = (case.grad, case.out, case.branch if branch else None, 0.0, math.inf)
    return compiled(layers, "relu_backward_kernel", lambda: layers.relu_backward_(*args), target)


def forward(
    target: GPUTarget, shape: tuple[int, ...], layout: str, dtype: torch.dtype, *, branch: bool
) -> Machine:
    case = layer(shape, dtype, layout)
    args = (case.x, case.branch if branch else None, case.scale, case.shift, 0.0, math.inf)
    name = "scale_shift_relu_kernel"
    return compiled(layers, name, lambda: layers.scale_shift_relu(*args), target)


def backward(
    target: GPUTarget, shape: tuple[int, ...], layout: str, dtype: torch.dtype, *, branch: bool
) -> Machine:
    case = layer(shape, dtype, layout)
    args = (case.grad, case.out, case.scale, case.branch if branch else None, 0.0, math.inf)
    name = "scale_shift_relu_backward_kernel"
    return compiled(layers, name, lambda: layers.scale_shift_relu_backward_(*args), target)


# Besides loads and stores of 128 bits of the tensors: how many values of each channel an op reads.
PASSES: dict[str, tuple[Callable[..., Machine], int, int, int]] = {
    "mask": (mask, 2, 1, 0),
    "forward": (forward, 1, 1, 2),
    "backward": (backward, 2, 1, 1),
}
passes = pytest.mark.parametrize(
    ("make", "reads", "writes", "values"), PASSES.values(), ids=PASSES.keys()
)


@capabilities
@dtypes
@places
@branches
@passes
def test_a_vector_is_read_once_a_tensor(
    make: Callable[..., Machine],
    reads: int,
    writes: int,
    values: int,
    capability: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    branch: bool,
    tmp_path: Path,
) -> None:
    """And the channels' values: one each of a vector's channel, or vectors of its neighbouring channels' ones."""
    machine = make(CUDA[capability], shape, layout, dtype, branch=branch)
    vectors_of_values = values * (2 if dtype.itemsize == 2 else 1) if layout != "contiguous" else 0
    assert machine.count(VECTOR_LOAD) == (reads + branch + vectors_of_values) * VECTORS
    stores = writes + (branch and make is forward)  # the sum replaces x
    assert machine.count(VECTOR_STORE) == stores * VECTORS
    assert machine.count(SINGLE) == (values * VECTORS if layout == "contiguous" else 0)
    assert machine.count(r"ld\.global") == machine.count(VECTOR_LOAD) + machine.count(SINGLE)
    assert machine.count(r"st\.global") == machine.count(VECTOR_STORE)
    assert machine.count(r"\.shared") == 0

    used = machine.resources(tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    # 40 leave room for 12 blocks of 128 threads; with three vectors of eight elements and their channels, for 10.
    crowded = dtype.itemsize == 2 and branch and make is not mask
    assert used["REG"] <= (48 if crowded else 40)


@pytest.mark.parametrize(("name", "dtype", "place"), rotated([*PASSES], DTYPES, [*PLACES]), ids=str)
def test_nothing_is_fused_or_flushed(name: str, dtype: torch.dtype, place: str) -> None:
    make, *_ = PASSES[name]
    assert make(CUDA[90], *PLACES[place], dtype, branch=True).fuses_nothing


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mask", torch.float32), ("forward", torch.float64), ("backward", torch.float32)],
    ids=str,
)
def test_nor_does_the_assembler_fuse(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    machine = PASSES[name][0](CUDA[90], *PLACES["channels_last"], dtype, branch=True)
    assert not re.search(r"\b[FD]FMA\b", machine.sass(tmp_path))


@passes
def test_every_shape_of_a_layer_compiles(
    make: Callable[..., Machine], reads: int, writes: int, values: int
) -> None:
    """Sizes of one, which Triton turns into constants, and channels that no vector fits."""
    for shape in ((1, 1), (5, 1), (1, 5), (8, 65, 5, 5), (8, 72, 5, 5)):
        for layout in ("contiguous", "channels_last"):
            for dtype in (torch.bfloat16, torch.float64):
                assert make(CUDA[90], shape, layout, dtype, branch=True).text


@passes
def test_the_64_bit_path_of_large_tensors_compiles(
    make: Callable[..., Machine],
    reads: int,
    writes: int,
    values: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = make(CUDA[90], *PLACES["channels_last"], torch.bfloat16, branch=True)
    monkeypatch.setattr(common, "INT32_MAX", 0)
    wide = make(CUDA[90], *PLACES["channels_last"], torch.bfloat16, branch=True)
    assert wide.count(VECTOR_LOAD) == narrow.count(VECTOR_LOAD)
    if values:
        assert "rem.s64" in wide.text
        assert "rem.s64" not in narrow.text


@passes
def test_it_compiles_for_an_amd_gpu(
    make: Callable[..., Machine], reads: int, writes: int, values: int
) -> None:
    machine = make(MI300, *PLACES["channels_last"], torch.bfloat16, branch=True)
    assert machine.count(r"\b(?:global|buffer)_load_dwordx4") >= reads + 1
    assert machine.count(r"v_(?:pk_)?fma(?:c|mk|ak)?_f(?:32|64)") == 0
