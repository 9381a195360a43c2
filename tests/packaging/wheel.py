"""The wheel as a user builds it: once a session, for what is read off the wheel and off nvcc's code in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.once import made_once

ROOT = Path(__file__).resolve().parents[2]
HAS_NVCC = bool(os.environ.get("CUDACXX") or shutil.which("nvcc"))


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with standard error folded into standard output."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def copy_sources(folder: Path) -> Path:
    """A copy of what a build reads, without anything built before."""
    for name in ("csrc", "iaat_fast"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build_wheel(source: Path, **environment: str) -> tuple[list[Path], str]:
    """The wheels built from source (none where the build failed) and what was printed."""
    options = ("-v", "--no-build-isolation", "--no-deps", "--wheel-dir", "wheels")
    built = run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source, **environment)
    return list(source.glob("wheels/*.whl")), built.stdout


def native_build(factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A source tree in which the wheel was built, the wheel, and what the build printed.

    With the CUDA kernels for sm_80 and sm_90 where nvcc is there: the CPU's are compiled once for both.
    """
    chosen = {"IAAT_CUDA": "1", "IAAT_CUDA_ARCHS": "80;90"} if HAS_NVCC else {}

    def make(folder: Path) -> None:
        wheels, printed = build_wheel(copy_sources(folder), **chosen)
        assert len(wheels) == 1, printed
        (folder / "printed.txt").write_text(printed)

    source = made_once(factory, "wheel", make)
    (wheel,) = source.glob("wheels/*.whl")
    return source, wheel, (source / "printed.txt").read_text()
