"""The table of signatures says what csrc declares and what the built extension takes; so does the stub for the rest."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from iaat_fast.ops.native import signatures

ROOT = Path(__file__).resolve().parents[2]
STUB = ast.parse((ROOT / "iaat_fast" / "_C.pyi").read_text())

tables = pytest.mark.parametrize(
    ("table", "source"),
    [(signatures.CPU, "module.cpp"), (signatures.CUDA, "cuda/bindings.h")],
    ids=["cpu", "cuda"],
)

# A kind of the table, as C++ declares it and as pybind11 documents it.
DECLARED = {"dtype": "int", "Tensor": "Address", "Tensor?": "Address", "int": "int64_t"}
DOCUMENTED = {"dtype": "int", "Tensor": "int", "Tensor?": "int"}


def expected_in_cpp(table: Mapping[str, str], name: str) -> list[str]:
    arguments = []
    for argument, kind in signatures.parsed(table[name]).items():
        if kind == "Seed":
            arguments += [f"Address {argument}", f"int64_t {argument}_size"]
        else:
            cpp = {**DECLARED, "float": "double", "bool": "bool"}[kind]
            arguments.append(f"{cpp} {argument}")
    return [*arguments, "int device", "Address stream"] if table is signatures.CUDA else arguments


def documented(function: Any) -> tuple[list[str], str]:
    """The types of a pybind11 function's arguments and of its result, by the first line of its docstring."""
    line = function.__doc__.splitlines()[0]
    types = []
    for said in re.findall(r"arg\d+: ([^,)]+)", line):
        supported = re.search(r"Supports(Int|Float)", said)
        types.append(supported[1].lower() if supported else said)
    return types, line.rpartition(" -> ")[2]


@tables
def test_the_table_is_what_csrc_declares(table: Mapping[str, str], source: str) -> None:
    text = (ROOT / "csrc" / source).read_text()
    bound = set(re.findall(r'module\.def\("(\w+)", &\w+', text)) - {"use_isa", "build_info"}
    assert bound == set(table)
    declared = {
        name: re.split(r",\s+", arguments)
        for name, arguments in re.findall(r"^(?:bool|void) (\w+)\(([^)]*)\) \{", text, re.M)
    }
    for name in table:
        assert declared[name] == expected_in_cpp(table, name), name


@tables
def test_the_built_extension_takes_what_the_table_says(
    table: Mapping[str, str], source: str
) -> None:
    kernels: Any = pytest.importorskip("iaat_fast._C")
    if table is signatures.CUDA:
        if not hasattr(kernels, "cuda"):
            pytest.skip("built without CUDA")
        kernels = kernels.cuda
    for name in table:
        kinds = [DOCUMENTED.get(kind, kind) for kind in signatures.parsed(table[name]).values()]
        if table is signatures.CUDA:
            kinds = [*" ".join(kinds).replace("Seed", "int int").split(), "int", "int"]
        assert documented(getattr(kernels, name))[0] == kinds, name


def test_the_stub_declares_what_else_the_extension_offers() -> None:
    extension = pytest.importorskip("iaat_fast._C")
    functions = {
        node.name: (
            [
                ast.unparse(argument.annotation)
                for argument in node.args.args
                if argument.annotation
            ],
            ast.unparse(node.returns).partition("[")[0] if node.returns else "",
        )
        for node in STUB.body
        if isinstance(node, ast.FunctionDef)
    }
    offered = {name for name in dir(extension) if not name.startswith("_")}
    assert set(functions) == offered - set(signatures.CPU) - {"cuda"}
    for name, signature in functions.items():
        assert signature == documented(getattr(extension, name)), name


def kernels_that_say(said: list[Any], table: Mapping[str, str]) -> SimpleNamespace:
    kernel: Callable[..., None] = lambda *arguments: said.append(arguments)  # noqa: E731
    return SimpleNamespace(**dict.fromkeys(table, kernel))


def test_a_caller_turns_tensors_into_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    x, seed = torch.ones(2, 3), torch.tensor([5, 6])
    at = x.data_ptr()
    layer = signatures.callers(kernels_that_say(said, signatures.CPU), signatures.CPU, queued=False)
    layer.relu_backward(torch.float16, x, x, None, 6, 0.0, 1.0)
    assert said.pop() == (2, at, at, 0, 6, 0.0, 1.0)

    monkeypatch.setattr(signatures, "queue", lambda device: (3, 77))
    cuda = signatures.callers(kernels_that_say(said, signatures.CUDA), signatures.CUDA, queued=True)
    cuda.random_crop_flip(x, x, x, seed, 1, 2, 3, 4, 5, 6, True)
    assert said.pop() == (at, at, at, seed.data_ptr(), 2, 1, 2, 3, 4, 5, 6, True, 3, 77)
