"""A build with CUDA kernels: what it asks for before it compiles anything, and what it says of itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja", "c++")),
    reason="needs cmake, ninja and a C++ compiler",
)


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A CUDA build of this checkout into `folder`, with standard error folded into standard output."""
    into = ("--build-temp", folder / "temp", "--build-lib", folder / "lib")
    chosen = {"CUDA_HOME": "", "IAAT_CUDA_ARCHS": "", **environment}
    inherited = {name: value for name, value in os.environ.items() if name != "CUDACXX"}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", *map(str, into)],
        cwd=ROOT,
        env={**inherited, "IAAT_CUDA": "1", **chosen},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def nvcc_that_says(folder: Path, text: str) -> str:
    """An nvcc that prints `text` and compiles nothing."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def assert_refused(built: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    assert built.returncode != 0
    said = " ".join(built.stdout.split())  # CMake wraps its messages
    for expected in words:
        assert expected in said
    assert list(folder.rglob("*.o")) + list(folder.rglob("*.so")) == []


INSTALL = "install the CUDA toolkit, version 12 or later"


def test_without_nvcc_it_says_what_to_install(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    # The tools of the build but nvcc, which may lie in the same folder.
    for tool in ("cmake", "ninja", "c++", "git"):
        if found := shutil.which(tool, path=TOOLS):
            (tools / tool).symlink_to(found)
    refused = build(tmp_path, PATH=str(tools))
    assert_refused(refused, tmp_path, "IAAT_CUDA needs nvcc, which was not found", INSTALL)


def test_a_cudacxx_that_is_not_there_is_not_passed_over(tmp_path: Path) -> None:
    refused = build(tmp_path, CUDACXX=str(tmp_path / "missing"))
    assert_refused(refused, tmp_path, "IAAT_CUDA needs nvcc, which was not found", INSTALL)


def test_an_old_nvcc_is_refused_with_its_version(tmp_path: Path) -> None:
    old = nvcc_that_says(tmp_path, "Cuda compilation tools, release 11.8, V11.8.89")
    refused = build(tmp_path, CUDACXX=old)
    assert_refused(refused, tmp_path, "is of CUDA 11.8, too old", INSTALL)


def test_something_that_is_no_nvcc_is_refused(tmp_path: Path) -> None:
    refused = build(tmp_path, CUDACXX=nvcc_that_says(tmp_path, "hello"))
    assert_refused(refused, tmp_path, "does not say its version", INSTALL)


def test_gpus_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    new = nvcc_that_says(tmp_path, "Cuda compilation tools, release 13.0, V13.0.88")
    refused = build(tmp_path, CUDACXX=new, IAAT_CUDA_ARCHS="hopper")
    assert_refused(refused, tmp_path, "IAAT_CUDA_ARCHS is 'hopper'", "80;90")


def test_the_build_says_which_gpus_it_is_for() -> None:
    extension = pytest.importorskip("iaat_fast._C", reason="the extension is not built")
    info = extension.build_info()
    if info["cuda"]:
        assert info["cuda_archs"] == sorted(info["cuda_archs"])
        assert info["cuda_ptx"] == info["cuda_archs"][-1]
        assert re.fullmatch(r"NVIDIA \d+\.\d+\.\d+", info["cuda_compiler"])
    else:
        assert (info["cuda_archs"], info["cuda_ptx"]) == ([], 0)
    assert hasattr(extension, "cuda") is info["cuda"]
