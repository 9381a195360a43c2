"""The emulated device does what CUDA defines, and objects to what CUDA leaves undefined."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.cuda.emulator import DeviceMemory

pytestmark = pytest.mark.slow  # the kernels are compiled


@pytest.fixture
def selftest(emulated: ModuleType) -> ModuleType:
    return emulated.selftest


@pytest.fixture(params=[False, True], ids=["ascending", "descending"])
def either_order(emulated: ModuleType, request: pytest.FixtureRequest) -> Iterator[None]:
    emulated.run_threads_descending(request.param)
    yield
    emulated.run_threads_descending(False)


def block_sum(selftest: ModuleType, values: Tensor, blocks: int, *, barrier: bool) -> Tensor:
    out = torch.zeros_like(values)
    threads = len(values) // blocks
    selftest.block_sum(out.data_ptr(), values.data_ptr(), blocks, threads, barrier)
    return out


@pytest.mark.usefixtures("either_order")
def test_warps_and_blocks_work_together(selftest: ModuleType) -> None:
    values = torch.arange(512, dtype=torch.int32)
    expected = values.view(2, 256).sum(1, dtype=torch.int32).repeat_interleave(256)
    assert torch.equal(block_sum(selftest, values, 2, barrier=True), expected)


def test_a_missing_barrier_shows(selftest: ModuleType) -> None:
    values = torch.arange(512, dtype=torch.int32) + 1000
    with_barrier = block_sum(selftest, values, 2, barrier=True)
    assert not torch.equal(block_sum(selftest, values.flip(0), 2, barrier=False), with_barrier)


@pytest.mark.usefixtures("either_order")
@pytest.mark.parametrize("lanes", [1, 2, 31, 32])
def test_lanes_that_have_left_take_no_part(selftest: ModuleType, lanes: int) -> None:
    out = torch.tensor([7])
    selftest.count_lanes(out.data_ptr(), lanes)
    assert int(out) == 7 + 100 * (lanes // 2) + lanes


def test_reading_a_lane_that_has_left_is_an_error(selftest: ModuleType) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="__shfl_sync: reads lane 5, which takes no part"):
        selftest.read_an_exited_lane(out.data_ptr(), 5)


def test_lanes_at_different_intrinsics_are_an_error(selftest: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="deadlock"):
        selftest.diverge(torch.zeros(32, dtype=torch.int32).data_ptr())


def test_a_launch_that_cuda_refuses_returns_an_error(selftest: ModuleType) -> None:
    assert [selftest.copy_vectors(0, 0, 0, threads) for threads in (0, 1025)] == [9, 9]


def copy_vectors(emulated: ModuleType, source: Tensor, n: int) -> tuple[Tensor, DeviceMemory]:
    memory, out = DeviceMemory(emulated), torch.zeros_like(source)
    arguments = {"out": out.data_ptr(), "in": source.data_ptr(), "n": n, "threads": 32}
    sizes = {"out": 4 * out.numel(), "in": 4 * source.numel()}
    memory.call(emulated.selftest.copy_vectors, arguments, sizes)
    return out, memory


def test_what_a_kernel_reads_and_writes_is_counted(emulated: ModuleType) -> None:
    source = torch.rand(160)
    out, memory = copy_vectors(emulated, source, 40)
    assert torch.equal(out, source)
    assert memory.traffic == {"out": (0, 640), "in": (640, 0)}


def test_an_access_outside_every_buffer_is_an_error(emulated: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="writes 16 bytes at byte 640 of out, which has 640"):
        copy_vectors(emulated, torch.rand(160), 41)
    with pytest.raises(RuntimeError, match="writes 16 bytes at byte 640 of out, which has 648"):
        copy_vectors(emulated, torch.rand(162), 41)


def test_a_vector_that_is_not_aligned_is_an_error(emulated: ModuleType) -> None:
    with pytest.raises(
        RuntimeError, match=r"not aligned, at address 4 modulo 16, in .*selftest\.cu"
    ):
        copy_vectors(emulated, torch.rand(161)[1:], 40)
