"""The site builds without a warning: every link, anchor, page and docstring is as it should be."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

# `make` installs mkdocs into an environment below the project's own, whose pins it does not share.
MKDOCS = shutil.which(
    "mkdocs", path=f"{Path(sys.prefix, 'docs', 'bin')}{os.pathsep}{os.environ['PATH']}"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MKDOCS is None:
        pytest.skip("needs mkdocs: make docs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [MKDOCS, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_every_public_class_and_function_is_in_the_reference(site: Path) -> None:
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        package = f"iaat_fast.{page.stem}"
        module = importlib.import_module(package)
        text = (site / "reference" / f"{page.stem}.html").read_text()
        missing = [
            name
            for name in module.__all__
            if callable(value := getattr(module, name))
            and value.__name__ == name  # an earlier name of something is no other entry
            and not re.search(rf'id="{package}\.(?:{name}\.)?{name}"', text)
        ]
        assert not missing, package


@pytest.mark.slow
def test_pages_ask_nothing_of_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        for tag in ("<script src=", "<link rel=stylesheet href=", '<link rel="stylesheet" href='):
            assert f'{tag}"http' not in text, page.name
        assert "fonts.g" not in text
