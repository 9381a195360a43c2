"""The emulated device, built once a session, and the ops on it."""

from __future__ import annotations

import shutil
from types import ModuleType

import pytest

from tests.cuda import emulator, guarded
from tests.cuda.emulator import DeviceMemory
from tests.once import made_once
from tests.ops.conftest import uninitialised_memory_is_nan  # noqa: F401


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The kernels of csrc/cuda on the emulated device."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    pytest.importorskip("pybind11")
    return emulator.load(made_once(tmp_path_factory, "emulated", emulator.build))


@pytest.fixture(scope="session")
def memory(emulated: ModuleType) -> DeviceMemory:
    return DeviceMemory(emulated)


@pytest.fixture(scope="session")
def native_cuda(emulated: ModuleType, memory: DeviceMemory) -> ModuleType:
    """iaat_fast.ops.native.cuda on CPU tensors: a copy of the module, whose kernels run on the emulated device."""
    return guarded.load_native_cuda(guarded.extension(emulated, memory))
