"""Builds csrc/cuda for the emulated device, and keeps the buffers of a call between guard zones."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# The arithmetic flags are those of the CPU build (CMakeLists.txt): no contraction into fused multiply-adds.
FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-Wno-unknown-pragmas", "-ffp-contract=off", "-DIAAT_CUDA_EMULATED", f"-I{HERE}"),
]
# Calls a function of emulated_module.cpp before every access. Without scalar replacement an access stays as wide as it
# is written.
WATCHED = ["-fsanitize=thread,alignment", "-fno-tree-sra"]


def build(folder: Path, csrc: Path = ROOT / "csrc") -> None:
    """Compile csrc/cuda into the folder. Needs g++ and pybind11."""
    import pybind11

    includes = [csrc, sysconfig.get_path("include"), pybind11.get_include()]
    watched = [*sorted(csrc.glob("cuda/*.cu")), HERE / "selftest.cu"]
    objects, commands = [], []
    for source in (HERE / "emulated_module.cpp", *watched):
        objects.append(folder / f"{source.name}.o")
        flags = FLAGS + WATCHED if source in watched else FLAGS
        commands.append(
            [
                "g++",
                *flags,
                *(f"-I{i}" for i in includes),
                "-x",
                "c++",
                "-c",
                source,
                "-o",
                objects[-1],
            ]
        )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_run, commands))
    _run(["g++", "-shared", *objects, "-o", folder / "emulated.so"])


def load(folder: Path) -> ModuleType:
    """The module compiled into the folder."""
    spec = importlib.util.spec_from_file_location("emulated", folder / "emulated.so")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"


class DeviceMemory:
    """The memory of the emulated device: buffers between guard zones of bytes 0xff, NaN in every floating-point type.

    A buffer is copied in with the same misalignment it has on the host, and back after the call.
    """

    GUARD = 4096

    def __init__(self, module: ModuleType, size: int = 1 << 25) -> None:
        self.module = module
        self.bytes = torch.full((size,), 0xFF, dtype=torch.uint8)
        # name: (bytes read, bytes written) by the last call
        self.traffic: dict[str, tuple[int, int]] = {}

    def call(
        self, launch: Callable[..., None], arguments: dict[str, Any], sizes: dict[str, int]
    ) -> None:
        """Call launch(*arguments), with the pointers that `sizes` names standing for so many bytes each."""
        base, top = self.bytes.data_ptr(), self.GUARD
        arguments, moved = dict(arguments), []
        for name, size in sizes.items():
            host = arguments[name]
            if host == 0:
                continue
            start = top + (host - base - top) % 256
            top = start + size + self.GUARD
            assert top <= self.bytes.numel(), "the case does not fit into the device's memory"
            ctypes.memmove(base + start, host, size)
            arguments[name] = base + start
            moved.append((name, host, start, size))
        buffers = [(name, base + start, size) for name, _, start, size in moved]
        self.module.watch(base, base + self.bytes.numel(), buffers)
        try:
            launch(*arguments.values())
            self.traffic = self.module.traffic()
            for _, host, start, size in moved:
                ctypes.memmove(host, base + start, size)
        finally:
            self.module.watch(0, 0, [])
            for _, _, start, size in moved:
                self.bytes[start : start + size] = 0xFF
        touched = (self.bytes[:top] != 0xFF).nonzero()
        if len(touched):
            self.bytes.fill_(0xFF)
            raise AssertionError(f"written outside every buffer: byte {int(touched[0])} of {moved}")
