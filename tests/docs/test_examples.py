"""The examples run, and their own assertions hold."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest

from iaat_fast.data._torchvision import torchvision
from tests.docs.snippets import ROOT

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "matplotlib" in example.read_text():
        pytest.importorskip("matplotlib").use("agg")
    if "import lightning" in example.read_text():
        if importlib.util.find_spec("lightning") is None:
            pytest.skip("Lightning is not installed")
        if importlib.util.find_spec("torchvision") is not None:
            # Imported by its own loader, where its compiled ops do not load.
            torchvision("models")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    if "matplotlib" in example.read_text():
        import matplotlib.pyplot as plt

        plt.close("all")


def test_every_example_is_in_the_navigation_and_the_list() -> None:
    for example in EXAMPLES:
        assert f"examples/{example.stem}.md" in (ROOT / "mkdocs.yml").read_text()
        assert f"]({example.stem}.md)" in (ROOT / "docs" / "examples" / "index.md").read_text()
