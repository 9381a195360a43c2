"""What the Triton kernels become for sm_80 and sm_90, compiled here without a GPU: 16-byte accesses, no spill, no FMA.

A wrapper's launch is recorded, specialised as Triton's launcher would, and compiled down to the cubin. What is counted
are the instructions in a kernel's text: one pass over a tile is straight-line code.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

from iaat_fast.ops import triton as triton_ops  # noqa: E402
from iaat_fast.ops.triton import common, draws, linf, logit_rows  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # the kernels are compiled
    pytest.mark.triton,
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the kernels are interpreted"),
]

CUDA = {capability: GPUTarget("cuda", capability, 32) for capability in (80, 90)}
MI300 = GPUTarget("hip", "gfx942", 64)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

capabilities = pytest.mark.parametrize("capability", CUDA)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@dataclasses.dataclass(frozen=True)
class Machine:
    """A compiled kernel: its text, and what it takes of the processor."""

    text: str
    cubin: bytes

    def count(self, pattern: str, text: str | None = None) -> int:
        return len(re.findall(pattern, self.text if text is None else text))

    @property
    def fuses_nothing(self) -> bool:
        """Whether it rounds after each operation: no fused one, and none that ptxas may fuse, which it leaves be where
        .rn is written (PTX ISA, add); nor one that takes subnormals for 0."""
        arithmetic = re.findall(r"\b(?:add|sub|mul)\.(\S*)f(?:32|64)\b", self.text)
        fused = self.count(r"\b(?:fma|mad)\.\w+\.(?:\w+\.)?f(?:32|64)\b|\.ftz")
        return fused == 0 and set(arithmetic) <= {"rn."}

    @functools.cached_property
    def loop(self) -> str:
        """The text of the one loop: from the label that is jumped back to, up to the jump."""
        (body,) = re.findall(
            r"(?s)\n(\$L__BB\w+):((?:(?!\n\1:).)*?)\bbra(?:\.uni)?\s+\1;", self.text
        )
        return body[1]

    def resources(self, folder: Path) -> dict[str, int]:
        file = folder / "kernel.cubin"
        file.write_bytes(self.cubin)
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True
        ).stdout
        return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}

    def sass(self, folder: Path) -> str:
        file = folder / "kernel.cubin"
        file.write_bytes(self.cubin)
        command = [CUOBJDUMP, "-sass", file]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Recorder:
    """Stands in for a kernel, and keeps what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return lambda *args, **kwargs: self.launches.append((args, kwargs))


def compiled(
    module: ModuleType,
    name: str,
    call: Callable[[], object],
    target: GPUTarget,
    **options: object,
) -> Machine:
    """The kernel `name` of `module` as `call` launches it, with its very arguments. `options` override the launch's."""
    kernel, recorder = getattr(module, name), Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, recorder)
        call()
    ((args, kwargs),) = recorder.launches
    kwargs |= options
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*args, **kwargs)
    chosen, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, specialization, rest
    )
    result = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=target,
        options=chosen.__dict__,
    )
    if target.backend == "hip":
        return Machine(result.asm["amdgcn"], b"")
    return Machine(result.asm["ptx"], result.asm["cubin"])


def images(shape: tuple[int, ...], dtype: torch.dtype, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, K candidates of it, and a radius for each."""
    real = torch.float64 if dtype is torch.float64 else torch.float32
    rows = (k * shape[0], *shape[1:])
    return (
        torch.zeros(shape, dtype=dtype),
        torch.zeros(rows, dtype=dtype),
        torch.ones(rows[0], dtype=real),
    )


def step(
    target: GPUTarget,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    k: int = 1,
    stats: Tensor | None = None,
) -> Machine:
    x, x_adv, eps = images(shape, dtype, k)
    args = (x_adv, x_adv.clone(), x, eps, eps, 0.0, 1.0, False, stats)
    return compiled(linf, "linf_kernel", lambda: triton_ops.pgd_step_linf_(*args), target)


def projection(
    target: GPUTarget, shape: tuple[int, ...], dtype: torch.dtype, k: int = 1
) -> Machine:
    x, x_adv, eps = images(shape, dtype, k)
    args = (x_adv, x, eps, 0.0, 1.0)
    return compiled(linf, "linf_kernel", lambda: triton_ops.project_linf(*args), target)


def start(target: GPUTarget, shape: tuple[int, ...], dtype: torch.dtype, k: int = 1) -> Machine:
    x, _, eps = images(shape, dtype, k)
    args = (x, eps, torch.zeros(3, dtype=torch.int64), torch.arange(shape[0]), 0.0, 1.0)
    return compiled(
        draws, "random_start_kernel", lambda: triton_ops.random_start_linf(*args), target
    )


def cotangent(target: GPUTarget, classes: int, dtype: torch.dtype, **options: object) -> Machine:
    args = (torch.randn(128, classes).to(dtype), torch.zeros(128, dtype=torch.int64), False)
    call = functools.partial(triton_ops.ce_cotangent, *args)
    return compiled(logit_rows, "saturation_proof_kernel", call, target, **options)


def selection(target: GPUTarget, classes: int, dtype: torch.dtype, samples: int = 128) -> Machine:
    y = torch.zeros(samples, dtype=torch.int64)
    logits = torch.zeros(3 * samples, classes, dtype=dtype)
    memory, misclassified = torch.zeros(samples), torch.zeros(samples, dtype=torch.bool)
    args = (memory, y, logits, y, 0.1, 0.1, 0.0, 1.0, True, misclassified)
    call = functools.partial(triton_ops.select_epsilon_, *args)
    return compiled(logit_rows, "select_epsilon_kernel", call, target)


def crop_flip(
    target: GPUTarget, shape: tuple[int, ...] = (10, 32, 32, 3), padding: int = 4
) -> Machine:
    numbers = torch.zeros(4, dtype=torch.int64)
    args = (torch.zeros(shape, dtype=torch.uint8), numbers, numbers[:2], padding, True)
    return compiled(draws, "crop_flip_kernel", lambda: triton_ops.random_crop_flip(*args), target)


# Rows longer than a tile; shorter; no multiple of a vector, the whole a multiple and not.
ROWS = [(128, 3, 32, 32), (128, 784), (128, 63), (5, 63)]
rows = pytest.mark.parametrize("shape", ROWS, ids=str)

VECTOR_LOAD = r"ld\.global\.(?:v4\.b32|v2\.b64)"
VECTOR_STORE = r"st\.global\.(?:v4\.b32|v2\.b64)"
VECTORS = 2  # of 16 bytes per thread, in either half of a step in flight before the first is used


@capabilities
@dtypes
@rows
def test_a_step_loads_three_vectors_and_stores_one(
    capability: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    machine = step(CUDA[capability], shape, dtype)
    assert machine.count(VECTOR_LOAD) == 3 * VECTORS
    assert machine.count(VECTOR_STORE) == VECTORS
    elements = shape[0] * torch.Size(shape[1:]).numel()
    tail = elements * dtype.itemsize % 16 != 0
    # Radius and step size of two rows for a vector, or for the tile; with a tail, those of its elements once more.
    scalars = machine.count(r"ld\.global\.b(?:16|32|64)")
    assert scalars <= 4 * VECTORS + (7 if tail else 0)
    assert machine.count(r"st\.global\.b(?:16|32|64)") == (1 if tail else 0)


@capabilities
@dtypes
def test_the_candidates_share_what_is_loaded_of_x(capability: int, dtype: torch.dtype) -> None:
    machine = step(CUDA[capability], (128, 3, 32, 32), dtype, k=3)
    assert machine.count(VECTOR_LOAD, machine.loop) == 2 * VECTORS
    assert machine.count(VECTOR_STORE, machine.loop) == VECTORS
    assert machine.count(VECTOR_LOAD) == 3 * VECTORS
    assert machine.count(VECTOR_STORE) == VECTORS


@capabilities
@dtypes
@rows
def test_a_projection_loads_two_vectors_and_stores_one(
    capability: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    machine = projection(CUDA[capability], shape, dtype)
    assert machine.count(VECTOR_LOAD) == 2 * VECTORS
    assert machine.count(VECTOR_STORE) == VECTORS


def test_the_loads_of_a_step_come_before_their_first_use() -> None:
    """Six vectors in flight: nothing is computed in floating point until all are asked for."""
    text = step(CUDA[90], (128, 3, 32, 32)).text
    last_load = max(match.start() for match in re.finditer(VECTOR_LOAD, text))
    assert not re.search(r"(?:add|sub|mul|setp\.\w+)\.(?:rn\.)?f32", text[:last_load])


def test_unaligned_images_are_read_element_by_element() -> None:
    """A 16-byte access at another address would fault."""
    shape = (4, 64)
    x, eps = torch.zeros(257)[1:].view(shape), torch.ones(4)
    args = (x, x.clone(), x, eps, eps, 0.0, 1.0, False, None)
    machine = compiled(linf, "linf_kernel", lambda: triton_ops.pgd_step_linf_(*args), CUDA[90])
    assert machine.count(VECTOR_STORE) == 0
    assert machine.count(VECTOR_LOAD) == VECTORS  # the gradient, a tensor of its own


@capabilities
def test_a_random_start_draws_four_elements_from_a_block(capability: int) -> None:
    machine = start(CUDA[capability], (128, 3, 32, 32), torch.float32)
    assert machine.count(VECTOR_LOAD) == machine.count(VECTOR_STORE) == 2
    # Two blocks a thread, of ten rounds with two products; the first round of a counter that all share is done once.
    assert 30 < machine.count(r"mul\.hi\.u32") <= 2 * 10 * 2
    assert machine.count(r"\.shared") == 0
    for dtype in (torch.float16, torch.bfloat16):  # 8 bytes: what a block's four elements take
        machine = start(CUDA[capability], (128, 3, 32, 32), dtype)
        assert machine.count(r"ld\.global\.v2\.b32") == 1
        assert machine.count(r"st\.global\.v2\.b32") == 1
        assert machine.count(r"\.shared") == 0


@capabilities
def test_an_augmented_batch_is_stored_in_vectors_and_divides_nothing(capability: int) -> None:
    machine = crop_flip(CUDA[capability])
    assert machine.count(VECTOR_STORE) >= 1
    assert machine.count(r"st\.global\.b") == 0
    assert machine.count(r"div\.\w+\.f32|rcp") == 0


# Registers per thread: at most 40 leave room for 12 blocks of 128 threads on an sm_90 processor, and 6 loads in flight
# in each thread. The rest is not bound by memory, or rare.
BUDGETS: dict[str, tuple[Callable[[GPUTarget], Machine], int]] = {
    "step": (lambda target: step(target, (128, 3, 32, 32)), 40),
    "step, counted": (
        lambda target: step(target, (128, 3, 32, 32), stats=torch.zeros(2, dtype=torch.int64)),
        40,
    ),
    "step, bfloat16": (lambda target: step(target, (128, 3, 32, 32), torch.bfloat16), 40),
    "step, float16": (lambda target: step(target, (128, 3, 32, 32), torch.float16), 40),
    "step, float64": (lambda target: step(target, (128, 3, 32, 32), torch.float64), 40),
    "step, short rows": (lambda target: step(target, (128, 784)), 40),
    "step, three candidates": (lambda target: step(target, (128, 3, 32, 32), k=3), 48),
    "projection": (lambda target: projection(target, (128, 3, 32, 32), torch.float32), 40),
    "random start": (lambda target: start(target, (128, 3, 32, 32), torch.float32), 40),
    "random start, bfloat16": (
        lambda target: start(target, (128, 3, 32, 32), torch.bfloat16),
        40,
    ),
    "random start, odd rows": (lambda target: start(target, (128, 63), torch.float32), 64),
    "cotangent, 10 classes": (lambda target: cotangent(target, 10, torch.float32), 40),
    "cotangent, 1000 classes": (lambda target: cotangent(target, 1000, torch.float32), 64),
    "cotangent, float64": (lambda target: cotangent(target, 10, torch.float64), 64),
    "selection, 10 classes": (lambda target: selection(target, 10, torch.float32), 64),
    "selection, 1000 classes": (lambda target: selection(target, 1000, torch.bfloat16), 64),
    "augmentation": (crop_flip, 40),
}
kernels = pytest.mark.parametrize("name", BUDGETS)


@capabilities
@kernels
def test_nothing_spills_and_registers_keep_to_the_budget(
    name: str, capability: int, tmp_path: Path
) -> None:
    make, budget = BUDGETS[name]
    used = make(CUDA[capability]).resources(tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert 0 < used["REG"] <= budget


# In float64 the cotangent calls the library's exponential, which is made of fused operations.
@pytest.mark.parametrize("name", [name for name in BUDGETS if name != "cotangent, float64"])
def test_nothing_is_fused_or_flushed(name: str) -> None:
    """A fused multiply-add rounds once where the reference rounds twice; .ftz takes subnormals for 0."""
    assert BUDGETS[name][0](CUDA[90]).fuses_nothing


# One of every kernel and real type: to disassemble one takes half a second.
@pytest.mark.parametrize(
    "name",
    [
        "step, three candidates",
        "step, float64",
        "random start, odd rows",
        "cotangent, 1000 classes",
        "selection, 10 classes",
        "augmentation",
    ],
)
def test_nor_does_the_assembler_fuse(name: str, tmp_path: Path) -> None:
    assert not re.search(r"\b[FD]FMA\b", BUDGETS[name][0](CUDA[90]).sass(tmp_path))


def test_fusing_would_show(tmp_path: Path) -> None:
    """What the tests above look for is there where the launch does not forbid it."""
    machine = cotangent(CUDA[90], 10, torch.float32, enable_fp_fusion=True)
    assert not machine.fuses_nothing
    assert "FFMA" in machine.sass(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 4), (1, 5)], ids=str)
def test_sizes_of_one_compile(shape: tuple[int, ...]) -> None:
    """Triton turns an argument that is 1 into a constant, which has not all that a tensor has."""
    for dtype in (torch.float32, torch.float64):
        for k in (1, 3):
            assert step(CUDA[90], shape, dtype, k).text
            assert projection(CUDA[90], shape, dtype, k).text
            assert start(CUDA[90], shape, dtype, k).text
        assert cotangent(CUDA[90], 1, dtype).text
        assert selection(CUDA[90], 1, dtype, samples=1).text
    for images_shape in ((1, 1, 1, 1), (1, 8, 1, 1)):
        for padding in (0, 1):
            assert crop_flip(CUDA[90], images_shape, padding).text


@pytest.mark.parametrize("shape", [(128, 3, 32, 32), (4, 63)], ids=str)
def test_the_64_bit_path_of_large_tensors_compiles(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "INT32_MAX", 0)
    for make in (step, projection, start):
        machine = make(CUDA[90], shape, torch.float32)
        assert "div.s64" in machine.text


@dtypes
def test_a_step_compiles_for_an_amd_gpu(dtype: torch.dtype) -> None:
    machine = step(MI300, (128, 3, 32, 32), dtype)
    assert machine.count(r"\b(?:global|buffer)_load_dwordx4") >= 3
    assert machine.count(r"v_(?:pk_)?fma(?:c|mk|ak)?_f(?:32|64)") == 0
