"""What is shipped: the extension, the wheel with and without a compiler, light imports."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import iaat_fast
from tests.packaging import wheel as wheels
from tests.packaging.wheel import ROOT, build_wheel, copy_sources, run

# A library name or the mangled prefix of a C++ symbol; found in any binary built against torch.
TORCH_TRACE = re.compile(rb"lib(?:torch|c10)\w*\.so|_ZNK?(?:5torch|3c10|2at)\d")

# ops that need no compiler: 0.9 is outside the ball of radius 0.25 round 0.5, 0.4 inside.
USE_THE_OPS = """
import torch, iaat_fast
from iaat_fast.ops import backend, project_linf
projected = project_linf(torch.tensor([[0.9, 0.4]]), torch.tensor([[0.5, 0.5]]), 0.25)
assert torch.equal(projected, torch.tensor([[0.75, 0.4]])), projected
print(iaat_fast.__file__, backend("cpu"))
"""

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, [os.environ.get("CXX") or "c++", "g++", "clang++"])),
    reason="needs a C++ compiler",
)


def run_in_checkout(code: str) -> str:
    return run(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=str(ROOT)).stdout.strip()


def environment(folder: Path) -> tuple[Path, Path]:
    """A virtual environment with torch: its interpreter and its site-packages.

    torch comes by a .pth file. Python reads no .pth files in the folder that one names, so an
    editable install of the checkout stays out.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    return folder / "bin/python", site


@pytest.fixture
def extension() -> Path:
    found = importlib.util.find_spec("iaat_fast._C")
    if found is None or found.origin is None:
        pytest.skip("the extension is not built")
    return Path(found.origin)


@pytest.fixture(scope="session")
def native_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source tree in which the wheel was built, and the wheel."""
    source, wheel, _ = wheels.native_build(tmp_path_factory)
    return source, wheel


@pytest.fixture
def no_compiler(tmp_path: Path) -> dict[str, str]:
    empty = tmp_path / "empty"
    empty.mkdir()
    return {"PATH": str(empty), "CXX": ""}


def test_the_extension_knows_nothing_of_torch(extension: Path) -> None:
    assert TORCH_TRACE.findall(extension.read_bytes()) == []


def test_a_binary_built_against_torch_would_be_noticed() -> None:
    assert TORCH_TRACE.search(Path(torch._C.__file__).read_bytes())


@pytest.mark.slow
def test_importing_every_package_leaves_the_heavy_libraries_out_and_starts_one_openmp_runtime(
    extension: Path,
) -> None:
    """In one fresh process. The runtime serves torch and the extension."""
    # command_line is what the commands are made of, tyro included.
    packages = sorted(
        f"iaat_fast.{path.stem}"
        for path in (ROOT / "iaat_fast").iterdir()
        if (path.suffix == ".py" and not path.stem.startswith(("__", "command_line")))
        or (path / "__init__.py").exists()
    )
    heavy = {"torchvision", "sklearn", "matplotlib", "tensorboard", "tyro"}
    printed = run_in_checkout(
        f"import sys, iaat_fast, {', '.join(packages)}\nprint({heavy} & set(sys.modules) or 'none')\n"
        "import iaat_fast._C\n"
        "mapped = {line.split()[-1] for line in open('/proc/self/maps')}\n"
        "print(iaat_fast._C.__file__ in mapped, sum('libgomp' in path for path in mapped))"
    )
    assert printed.splitlines() == ["none", "True 1"]


def test_no_file_of_the_repository_names_a_path_of_one_machine() -> None:
    listed = run("git", "ls-files", "-z", cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    machine_path = re.compile(rb"(?<![\w.])/(?:work|root|home|opt|tmp/venv|tmp/wt)/")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    files = [path for path in files if path.is_file() and path != Path(__file__).resolve()]
    assert files
    assert [path for path in files if machine_path.search(path.read_bytes())] == []


def test_iaat_cuda_takes_0_or_1(tmp_path: Path) -> None:
    refused = run(sys.executable, ROOT / "setup.py", "--name", cwd=tmp_path, IAAT_CUDA="2")
    assert refused.returncode != 0
    assert "IAAT_CUDA is '2'; expected 0 or 1" in refused.stdout


def test_a_cuda_build_without_a_compiler_is_refused(
    tmp_path: Path, no_compiler: dict[str, str]
) -> None:
    setup = (sys.executable, ROOT / "setup.py", "--name")
    refused = run(*setup, cwd=tmp_path, IAAT_CUDA="1", **no_compiler)
    assert refused.returncode != 0
    assert "IAAT_CUDA=1 needs a C++ compiler" in refused.stdout


@needs_compiler
@pytest.mark.slow
def test_the_wheel_holds_the_extension_and_no_sources(native_build: tuple[Path, Path]) -> None:
    _, wheel = native_build
    assert wheel.name.startswith(f"iaat_fast-{iaat_fast.__version__}-cp")
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(bool(re.fullmatch(r"iaat_fast/_C\.[\w.-]+\.so", name)) for name in names) == 1
    assert "iaat_fast/py.typed" in names
    assert {"iaat_fast/report/templates/page.html.j2", "iaat_fast/report/templates/page.css"} <= {
        *names
    }
    (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
    declared = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "iaat-fast = iaat_fast.__main__:main" in declared
    assert {name.split("/")[0] for name in names} == {
        "iaat_fast",
        f"iaat_fast-{iaat_fast.__version__}.dist-info",
    }
    assert [name for name in names if name.endswith((".cpp", ".h", ".cu"))] == []


@needs_compiler
@pytest.mark.slow
def test_the_installed_wheel_runs_on_native(
    native_build: tuple[Path, Path], tmp_path: Path
) -> None:
    python, site = environment(tmp_path / "installed")
    options = ("--no-deps", "--target", site)
    installed = run(sys.executable, "-m", "pip", "install", *options, native_build[1], cwd=tmp_path)
    assert installed.returncode == 0, installed.stdout
    code = f"""{USE_THE_OPS}
import runpy, sys, iaat_fast._C
print(iaat_fast._C.build_info()["version"])
sys.argv[1:] = ["--version"]
runpy.run_module("iaat_fast", run_name="__main__")
"""
    used = run(python, "-c", code, cwd=tmp_path, PYTHONPATH="")
    assert used.stdout.splitlines()[:2] == [
        f"{site}/iaat_fast/__init__.py native",
        iaat_fast.__version__,
    ], used.stdout
    listed = used.stdout.split("\n", 2)[2]
    assert listed.startswith(f"iaat_fast {iaat_fast.__version__}, torch 2.")
    assert "backends: native" in listed


@needs_compiler
@pytest.mark.slow
def test_no_code_is_shared_between_instruction_sets(native_build: tuple[Path, Path]) -> None:
    """A weak symbol's name must hold its instruction set: the linker keeps one copy of each name,
    and an AVX-512 one would crash a processor without it."""
    if not shutil.which("nm"):
        pytest.skip("needs nm")
    objects = list(native_build[0].glob("build/**/kernels_*.dir/**/kernels.cpp.o"))
    assert objects
    for path in objects:
        isa = str(path).split("/kernels_")[1].split(".dir/")[0]
        symbols = run("nm", path, cwd=path.parent).stdout
        weak = re.findall(r"^\w+ [VWu] (\S+)$", symbols, flags=re.MULTILINE)
        assert [name for name in weak if f"{len(isa)}{isa}" not in name] == [], isa


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_pure_and_runs_on_reference(
    tmp_path: Path, no_compiler: dict[str, str]
) -> None:
    built, output = build_wheel(copy_sources(tmp_path / "source"), **no_compiler)
    expected = f"iaat_fast-{iaat_fast.__version__}-py3-none-any.whl"
    assert [wheel.name for wheel in built] == [expected], output
    assert "no C++ compiler found" in output

    # To install a pure wheel is to unpack it; the other one goes through pip.
    python, site = environment(tmp_path / "installed")
    zipfile.ZipFile(built[0]).extractall(site)
    code = f"""
import os
os.environ["IAAT_FAST_BACKEND"] = "native"
try:
    import iaat_fast.ops
except ImportError as error:
    print("forced:", error)
del os.environ["IAAT_FAST_BACKEND"]
{USE_THE_OPS}"""
    used = run(python, "-c", code, cwd=tmp_path, PYTHONPATH="")
    forced, *said, last = used.stdout.splitlines()
    assert forced.startswith("forced: IAAT_FAST_BACKEND=native")
    assert last.split() == [f"{site}/iaat_fast/__init__.py", "reference"], used.stdout
    assert sum("reference backend" in line for line in said) == 1


@needs_compiler
@pytest.mark.slow
def test_sources_that_do_not_compile_fail_the_build(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    for file in source.glob("csrc/**/*.cpp"):  # all, so that none takes its time
        file.write_text("#error broken on purpose\n")
    # What pip calls, without pip: that it makes no wheel where this fails is pip's.
    built = run(sys.executable, "setup.py", "build_ext", cwd=source)
    assert built.returncode != 0
    assert "broken on purpose" in built.stdout
    assert not list(source.rglob("_C.*.so"))
