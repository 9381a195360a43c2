"""What nvcc makes of the kernels: registers, memory accesses, and a library that needs neither torch nor a driver.

Nothing here runs on a GPU. The wheel is built once, as a user builds it (IAAT_CUDA=1), and its machine code read.
"""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cuda import sass
from tests.cuda.sass import Kernel, Region
from tests.packaging import wheel

ARCHS = (80, 90)
OPS = (
    "project_linf",
    "pgd_step_linf",
    "random_start_linf",
    "ce_cotangent",
    "saturation_proof",
    "select_epsilon",
    "random_crop_flip",
    "relu_backward",
    "scale_shift_relu",
    "scale_shift_relu_backward",
)
# A library name or the mangled prefix of a C++ symbol; found in any binary built against torch.
TORCH_TRACE = re.compile(rb"lib(?:torch|c10)\w*\.so|_ZNK?(?:5torch|3c10|2at)\d")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not wheel.HAS_NVCC, reason="needs nvcc (CUDA toolkit)"),
    pytest.mark.skipif(
        not sass.cuobjdump(), reason="needs cuobjdump, of the CUDA toolkit or of triton"
    ),
]


def run(*command: str | Path, **environment: str) -> str:
    done = wheel.run(*command, cwd=wheel.ROOT, **environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The extension with the CUDA kernels for sm_80 and sm_90, and what its build printed."""
    _, packed, printed = wheel.native_build(tmp_path_factory)
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(packed).extractall(folder)
    (library,) = folder.glob("iaat_fast/_C.*.so")
    # A folder of its own: next to it lies the package, whose modules have common names.
    return library.rename(folder / library.name), printed


@pytest.fixture(scope="module")
def library(built: tuple[Path, str]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def kernels(library: Path) -> list[Kernel]:
    found = sass.read_kernels(library)
    assert found
    return found


def named(kernels: list[Kernel], pattern: str) -> list[Kernel]:
    found = [kernel for kernel in kernels if re.fullmatch(pattern, kernel.name)]
    assert {kernel.arch for kernel in found} == set(ARCHS), f"no kernel is called {pattern}"
    return found


def test_every_kernel_is_there_for_every_architecture(kernels: list[Kernel]) -> None:
    names = {arch: sorted(k.name for k in kernels if k.arch == arch) for arch in ARCHS}
    assert names[80] == names[90]
    assert {kernel.arch for kernel in kernels} == set(ARCHS)
    for op in OPS:
        assert any(name.startswith(f"{op}_kernel<") for name in names[80]), op


def test_the_build_warns_of_nothing(built: tuple[Path, str]) -> None:
    """What pip and setuptools say before and after is theirs."""
    compiling = built[1].split("running build_ext\n")[1].split("running install_lib\n")[0]
    assert "Building CUDA object" in compiling
    assert "warning" not in compiling.lower()
    assert re.findall("[1-9][0-9]* bytes spill", compiling) == []


def test_newer_gpus_find_ptx(library: Path) -> None:
    assert "sm_90.ptx" in run(sass.cuobjdump() or "", "--list-ptx", library)


def test_no_kernel_spills_registers_or_has_a_stack(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        where = f"{kernel.name} for sm_{kernel.arch}"
        assert kernel.usage["STACK"] == 0, where
        assert kernel.usage["LOCAL"] == 0, where
        assert not kernel.whole.has("LDL"), where
        assert not kernel.whole.has("STL"), where


# Ceilings on the registers of a thread. A multiprocessor has 65,536: n blocks of 256 threads fit where a thread has no
# more than 256 / n of them, rounded down to a multiple of 8.
ANY, NARROW = r"(float|double|Half|BFloat16)", r"(float|Half|BFloat16)"
CHANNELS = "(OneChannel|Neighbours|AnyChannels)"
REGISTERS = {
    # Six blocks: the memory is busy only with enough loads under way.
    rf"pgd_step_linf_kernel<\d, (true|false), {ANY}>": 40,
    rf"project_linf_kernel<\d, {ANY}>": 40,
    # Five blocks; a thread has a block of Philox and its ten rounds in registers.
    rf"random_start_linf_kernel<[48], true, {NARROW}>": 48,
    # Single elements, four blocks; vectors whose elements are of two or three Philox blocks, or double, two.
    rf"random_start_linf_kernel<1, false, {ANY}>": 64,
    rf"random_start_linf_kernel<[48], false, {NARROW}>": 128,
    r"random_start_linf_kernel<2, (true|false), double>": 80,
    # Blocks of 128 threads, ten of them; for 257 to 1,024 classes three, whose lanes hold 32 numbers each.
    rf"ce_cotangent_kernel<[148], {NARROW}>": 48,
    rf"ce_cotangent_kernel<32, {NARROW}>": 168,
    rf"saturation_proof_kernel<{ANY}>": 32,
    # Latency decides: a batch fills few multiprocessors.
    rf"select_epsilon_kernel<{ANY}>": 48,
    r"random_crop_flip_kernel<[14]>": 40,
    # Six blocks, as in the step.
    rf"relu_backward_kernel<\d, (true|false), {ANY}>": 40,
    rf"scale_shift_relu(_backward)?_kernel<\d, {CHANNELS}, (true|false), {ANY}>": 40,
}


def test_every_kernel_keeps_to_its_registers(kernels: list[Kernel]) -> None:
    for pattern, ceiling in REGISTERS.items():
        for kernel in named(kernels, pattern):
            assert kernel.registers <= ceiling, f"{kernel.name} for sm_{kernel.arch}"
    unlisted = {k.name for k in kernels if not any(re.fullmatch(p, k.name) for p in REGISTERS)}
    assert unlisted == set()


# The vectors of 16 bytes hold 2 to 8 elements; where an address does not allow them, kernels of width 1 take over.
WIDTHS = "[248]"


def vector_loop(kernel: Kernel) -> Region:
    """The innermost loop that stores vectors: over the candidates."""
    loops = kernel.loops_with("STG", 128)
    assert len(loops) == 1, f"{kernel.name} for sm_{kernel.arch}: {len(loops)} loops store vectors"
    return loops[0]


@pytest.mark.parametrize(
    ("pattern", "reads", "values"),
    [
        # x_adv and grad; eps and alpha, of the row and of the next
        (rf"pgd_step_linf_kernel<{WIDTHS}, .*>", 2, 4),
        # x_adv; eps of two rows
        (rf"project_linf_kernel<{WIDTHS}, .*>", 1, 2),
        # x is there already; eps of two rows
        (rf"random_start_linf_kernel<{WIDTHS}, .*>", 0, 2),
    ],
)
def test_a_vector_is_read_once_an_operand_and_written_once(
    kernels: list[Kernel], pattern: str, reads: int, values: int
) -> None:
    """Per candidate `reads` loads of 128 bits and one store; x is one more, outside the loop over the candidates.

    Beside them the loop reads each row's radius and step, and nothing else. Which buffer an access belongs to does not
    show here; test_emulated_parity.py counts the bytes of each.
    """
    for kernel in named(kernels, pattern):
        where = f"{kernel.name} for sm_{kernel.arch}"
        loop = vector_loop(kernel)
        vectors = loop.most("STG", 128)
        assert vectors >= 1, where
        assert loop.most("STG") == vectors, where
        assert loop.most("LDG", 128) == reads * vectors, where
        assert loop.most("LDG", 8, 16, 32, 64) <= values * vectors, where
        assert kernel.whole.most("LDG", 128) == (reads + 1) * vectors, where
        assert kernel.whole.most("STG", 128) == vectors, where


@pytest.mark.parametrize(
    ("pattern", "reads", "writes", "vectors_of_values"),
    [
        (rf"relu_backward_kernel<{WIDTHS}, false, .*>", 2, 1, 0),
        (rf"relu_backward_kernel<{WIDTHS}, true, .*>", 3, 1, 0),
        (rf"scale_shift_relu_kernel<{WIDTHS}, {CHANNELS}, false, .*>", 1, 1, 2),
        (rf"scale_shift_relu_kernel<{WIDTHS}, {CHANNELS}, true, .*>", 2, 2, 2),
        (rf"scale_shift_relu_backward_kernel<{WIDTHS}, {CHANNELS}, false, .*>", 2, 1, 1),
        (rf"scale_shift_relu_backward_kernel<{WIDTHS}, {CHANNELS}, true, .*>", 3, 1, 1),
    ],
)
def test_a_layers_vector_is_read_once_a_tensor(
    kernels: list[Kernel], pattern: str, reads: int, writes: int, vectors_of_values: int
) -> None:
    """Beside `reads` loads and `writes` stores of 128 bits it reads its channels' values.

    Neighbours have theirs in vectors, of four floats or two doubles; one channel has one each, and no element of a
    tensor is loaded by itself.
    """
    for kernel in named(kernels, pattern):
        where = f"{kernel.name} for sm_{kernel.arch}"
        loop = vector_loop(kernel)
        width = int(re.findall(r"\d", kernel.name)[0])
        values = 0
        if "Neighbours" in kernel.name:
            values = vectors_of_values * (2 if width == 8 else 1)
        assert loop.most("STG", 128) == loop.most("STG") == writes, where
        assert loop.most("LDG", 128) == reads + values, where
        singles = {"OneChannel": 1, "AnyChannels": width}
        single = vectors_of_values * singles.get(kernel.name.split(", ")[1], 0)
        assert loop.most("LDG", 32, 64) == single, where
        assert not loop.has("LDG", 16), where


@pytest.mark.parametrize("half", ["Half", "BFloat16"])
def test_single_elements_are_accessed_only_behind_the_last_vector(
    kernels: list[Kernel], half: str
) -> None:
    """Sixteen bits are an element of an image: radii and steps have 32."""
    for op in ("pgd_step_linf", "project_linf", "random_start_linf"):
        for kernel in named(kernels, rf"{op}_kernel<8, .*{half}>"):
            assert not vector_loop(kernel).has("LDG", 16), kernel.name
            assert not vector_loop(kernel).has("STG", 16), kernel.name
            # At most one each: every thread takes one of the rest.
            assert kernel.whole.most("STG", 16) <= 1, kernel.name


def test_augmented_images_are_written_in_vectors(kernels: list[Kernel]) -> None:
    for kernel in named(kernels, rf"random_crop_flip_kernel<{WIDTHS}.*>"):
        assert kernel.whole.has("STG", 128), kernel.name


def test_the_library_needs_neither_torch_nor_the_cuda_runtime_nor_a_driver(library: Path) -> None:
    assert not TORCH_TRACE.search(library.read_bytes())
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
    assert needed
    assert [name for name in needed if re.match(r"libcuda|libtorch|libc10|libnv", name)] == []
    undefined = run("readelf", "--dyn-syms", "--wide", library)
    assert re.findall(r"UND (cuda\w+|cu[A-Z]\w+|__cuda\w+)", undefined) == []


def test_it_imports_where_there_is_no_gpu(library: Path) -> None:
    """In a process that sees no GPU, beside torch, which brings the OpenMP runtime."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import _C; i = _C.build_info();"
        "print(i['cuda'], i['cuda_archs'], i['cuda_ptx'], sorted(n for n in dir(_C.cuda) if n[0] in 'cprs'))"
    )
    printed = run(sys.executable, "-c", code, library.parent, CUDA_VISIBLE_DEVICES="")
    assert printed.strip() == f"True [80, 90] 90 {sorted(OPS)}"
