"""Every snippet of Python in the documents runs, from top to bottom, as a reader would type it."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from iaat_fast.data._torchvision import torchvision
from iaat_fast.models import build
from tests.docs.snippets import DOCUMENTS, ROOT, python

SHOWING = [document for document in DOCUMENTS if python(document)]
LACKING = {"gpu": not torch.cuda.is_available(), "data": True}


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


def reader() -> dict[str, Any]:
    """What the documents take for granted: a network over 8 x 8 images, images and their classes."""
    torch.manual_seed(0)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([3, 1, 4, 1])
    return {"torch": torch, "model": build("digits-cnn", width=4).eval(), "x": x, "y": y}


@pytest.mark.slow
@pytest.mark.parametrize("document", SHOWING, ids=named)
def test_every_snippet_runs(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = document.read_text()
    for package in ("torchattacks", "foolbox", "art", "pyautoattack"):
        if f"import {package}" in text or f"from {package}" in text:
            pytest.importorskip(package)
    if "import torchvision" in text or "from torchvision" in text:
        pytest.importorskip("PIL")
        torchvision("models")  # imported by its own loader, where its compiled ops do not load
    monkeypatch.chdir(tmp_path)
    names = reader()
    for snippet in python(document):
        if snippet.needs is not None and lacking(snippet.needs):
            continue
        where = f"{named(document)}:{snippet.line}"
        # Blank lines in front, so that a traceback has the document's line.
        code = compile("\n" * (snippet.line - 1) + snippet.code, where, "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other libraries' of each other
            exec(code, names)


def lacking(needs: str) -> bool:
    return LACKING.get(needs, importlib.util.find_spec(needs) is None)


def test_what_a_snippet_needs_is_a_gpu_data_or_a_package_that_it_imports() -> None:
    for document in SHOWING:
        for snippet in python(document):
            if snippet.needs not in (None, *LACKING):
                assert (
                    f"import {snippet.needs}" in snippet.code
                    or f"from {snippet.needs}" in snippet.code
                )
