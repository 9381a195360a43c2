"""Which backend serves which device: the table, forcing one, and what is said where one cannot."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from iaat_fast import ops
from iaat_fast.ops import backends, reference
from iaat_fast.ops.native import signatures

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with these variables and no IAAT_FAST_BACKEND of this process's."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("IAAT_FAST_BACKEND", "TRITON_INTERPRET")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


class Machine:
    """A machine with a GPU as far as the choice of a backend looks at one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.modules: dict[str, ModuleType | SimpleNamespace] = {}
        self.capability(9, 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(backends.importlib, "import_module", self.load)

    def capability(self, major: int, minor: int) -> None:
        self.monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    def load(self, name: str) -> ModuleType | SimpleNamespace:
        short = name.removeprefix("iaat_fast.ops.")
        if short not in self.modules:
            raise ImportError(f"no {short} here")
        return self.modules[short]

    def has_native(self, *, cuda: bool, archs: tuple[int, ...] = (80, 90), ptx: int = 90) -> None:
        info = {"cuda": cuda, "cuda_archs": list(archs), "cuda_ptx": ptx}
        self.modules["native.cpu"] = SimpleNamespace(_C=SimpleNamespace(build_info=lambda: info))
        if cuda:
            self.modules["native.cuda"] = SimpleNamespace()

    def has_triton(self) -> None:
        self.modules["triton"] = SimpleNamespace()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_gpu_takes_native_then_triton_then_the_reference(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "iaat_fast"):
        assert backends.choose(CUDA, "") == ("reference", reference)
        assert "no native.cpu here" in caplog.text
        assert "pip install triton" in caplog.text

        machine.has_triton()
        assert backends.choose(CUDA, "") == ("triton", machine.modules["triton"])

        machine.has_native(cuda=False)
        assert backends.choose(CUDA, "")[0] == "triton"
        assert "rebuild it with IAAT_CUDA=1" in caplog.text

        machine.has_native(cuda=True)
        assert backends.choose(CUDA, "") == ("native", machine.modules["native.cuda"])


def test_an_unsupported_compute_capability_is_named_and_triton_takes_over(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has_native(cuda=True)
    machine.has_triton()
    machine.capability(7, 5)
    with caplog.at_level(logging.INFO, "iaat_fast"):
        assert backends.choose(CUDA, "")[0] == "triton"
    assert "compute capability 7.5 (a GPU)" in caplog.text
    with pytest.raises(backends.Unavailable, match=r"IAAT_FAST_BACKEND=native on cuda:0: .*7\.5"):
        backends.choose(CUDA, "native")


@pytest.mark.parametrize(
    ("capability", "archs", "ptx", "expected"),
    [
        ((8, 0), (80, 90), 90, True),
        ((8, 9), (80, 90), 90, True),
        ((9, 0), (80, 90), 0, True),
        ((10, 0), (80, 90), 90, True),
        ((10, 0), (80, 90), 0, False),
        ((7, 5), (80, 90), 90, False),
        ((8, 0), (86,), 0, False),
        ((12, 0), (120,), 0, True),
    ],
)
def test_machine_code_serves_its_major_version_and_ptx_the_later_ones(
    capability: tuple[int, int], archs: tuple[int, ...], ptx: int, expected: bool
) -> None:
    assert backends.serves(capability, archs, ptx) is expected


@pytest.mark.parametrize("with_triton", [True, False])
def test_the_stem_of_native_cuda_is_tritons_and_without_it_the_references(
    with_triton: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    native = pytest.importorskip("iaat_fast.ops.native.cpu")
    kernels = SimpleNamespace(**dict.fromkeys(signatures.CUDA))
    monkeypatch.setattr(native._C, "cuda", kernels, raising=False)
    monkeypatch.delitem(sys.modules, "iaat_fast.ops.native.cuda", raising=False)
    if with_triton:
        expected = pytest.importorskip("iaat_fast.ops.triton.stem")
    else:
        expected = reference
        monkeypatch.setitem(sys.modules, "iaat_fast.ops.triton.stem", None)
    native_cuda = importlib.import_module("iaat_fast.ops.native.cuda")
    monkeypatch.delitem(sys.modules, "iaat_fast.ops.native.cuda")
    assert native_cuda.stem_conv_relu is expected.stem_conv_relu
    assert native_cuda.stem_conv_step_ is expected.stem_conv_step_
    assert ("the slower reference" in caplog.text) is not with_triton


@pytest.mark.parametrize("forced", ["native", "triton"])
def test_a_forced_backend_that_cannot_serve_a_device_raises_with_the_reason(
    machine: Machine, forced: str
) -> None:
    with pytest.raises(
        ImportError, match=rf"IAAT_FAST_BACKEND={forced} on cuda:0: .*no {forced}.* here"
    ):
        backends.choose(CUDA, forced)


def test_a_forced_native_that_is_built_without_cuda_says_so(machine: Machine) -> None:
    machine.has_native(cuda=False)
    with pytest.raises(ImportError, match="built without CUDA; rebuild it with IAAT_CUDA=1"):
        backends.choose(CUDA, "native")


def test_the_reference_can_be_forced_everywhere(machine: Machine) -> None:
    machine.has_native(cuda=True)
    assert backends.choose(CUDA, "reference") == ("reference", reference)
    assert backends.choose(CPU, "reference") == ("reference", reference)


def test_triton_serves_the_cpu_only_when_interpreted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_triton()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ImportError, match="TRITON_INTERPRET=1"):
        backends.choose(CPU, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.choose(CPU, "triton")[0] == "triton"


# Tries to import the ops with an unknown backend, with one that cannot serve this machine, and with none forced: in one
# fresh process, as starting one is what takes the time. What fails to import leaves nothing imported behind.
IMPORTS = """
import os, sys, torch
for forced in ("cuda", "triton"):
    os.environ["IAAT_FAST_BACKEND"] = forced
    try:
        import iaat_fast.ops
        print("imported")
    except (ImportError, ValueError) as error:
        print(type(error).__name__, error)
del os.environ["IAAT_FAST_BACKEND"]
import iaat_fast.ops
print("CUDA initialised:", torch.cuda.is_initialized(), "Triton loaded:", "triton" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_importing_refuses_what_cannot_serve_and_neither_initialises_cuda_nor_loads_triton() -> (
    None
):
    printed = python(IMPORTS)
    assert printed.returncode == 0, printed.stderr
    unknown, compiled_triton, neither = printed.stdout.splitlines()
    assert unknown.startswith(
        "ValueError IAAT_FAST_BACKEND='cuda': expected one of native, triton, reference"
    )
    assert compiled_triton.startswith("Unavailable IAAT_FAST_BACKEND=triton")
    assert "torch sees no GPU" in compiled_triton
    assert neither == "CUDA initialised: False Triton loaded: False"


def test_the_backend_in_use_is_named() -> None:
    assert ops.backend() in backends.NAMES
    assert ops.backend("meta") == "reference"
