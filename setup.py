"""Builds iaat_fast._C: finds the compiler, hands everything else to CMake (CMakeLists.txt).

Environment: CXX chooses the C++ compiler, IAAT_CUDA=1 adds the CUDA kernels and
IAAT_CUDA_ARCHS="80;90" says for which GPUs (nvcc is found on PATH, in CUDA_HOME or as CUDACXX).
Neither torch nor a GPU is needed to build.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA = os.environ.get("IAAT_CUDA") or "0"

# Without build isolation the cmake and ninja wheels lie beside the interpreter, maybe off PATH.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def has_compiler() -> bool:
    """Whether there is a C++ compiler: $CXX where it is set, else one of the usual names."""
    chosen = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(shutil.which(name) for name in chosen or ["c++", "g++", "clang++"])


class CMakeBuild(build_ext):
    """Configures and builds into a fresh folder, so that no stale CMake cache can interfere."""

    def build_extension(self, ext: Extension) -> None:
        environment = {**os.environ, "PATH": PATH}
        cmake, ninja = (shutil.which(tool, path=PATH) for tool in ("cmake", "ninja"))
        if not (cmake and ninja):
            raise SystemExit("iaat-fast: building needs cmake and ninja: pip install cmake ninja")
        build = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(build, ignore_errors=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = [
            *(cmake, "-S", ROOT, "-B", build, "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DIAAT_CUDA={'ON' if CUDA == '1' else 'OFF'}",
        ]
        if archs := os.environ.get("IAAT_CUDA_ARCHS"):
            configure.append(f"-DIAAT_CUDA_ARCHS={archs}")
        for command in (configure, [cmake, "--build", build]):
            if subprocess.run(command, env=environment).returncode:
                raise SystemExit("iaat-fast: the extension did not build, see above")


if CUDA not in ("0", "1"):
    raise SystemExit(f"iaat-fast: IAAT_CUDA is {CUDA!r}; expected 0 or 1")
if not has_compiler():
    if CUDA == "1":
        raise SystemExit("iaat-fast: IAAT_CUDA=1 needs a C++ compiler: install g++ or set CXX")
    print(
        "iaat-fast: no C++ compiler found, installing without the native kernels", file=sys.stderr
    )

setup(
    ext_modules=[Extension("iaat_fast._C", [])] if has_compiler() else [],
    cmdclass={"build_ext": CMakeBuild},
)
