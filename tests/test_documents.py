"""What the documents name is there, and the version is the newest that the CHANGELOG has released."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import iaat_fast

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
FOLDERS = ("benchmarks", "csrc", "docs", "iaat_fast", "tests", ".ci", ".github")
ENDINGS = r"(?:py|pyi|cpp|cu|cuh|h|md|toml|yml)"


def files() -> list[str]:
    """Everything a document may name, from the root."""
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [f"/{path.relative_to(ROOT)}" for path in (*below, *ROOT.glob("*"))]


def named(text: str) -> set[str]:
    """Paths in backticks, and links to files of the repository; those with a placeholder in capitals name none."""
    quoted = re.findall(r"`([\w./-]+)`", text)
    paths = {
        word
        for word in quoted
        if re.fullmatch(rf"[\w./-]+\.{ENDINGS}", word)
        or word.startswith(tuple(f"{folder}/" for folder in FOLDERS))
    }
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    return {path.rstrip("/") for path in paths | links if not re.search(r"\b[A-Z]+\.py$", path)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    """By its path from the root or from the document, or, within a package's section, by the end of it.

    The pages of examples are made of the scripts.
    """
    known, folder = files(), (ROOT / document).parent
    lost = [
        path
        for path in sorted(named((ROOT / document).read_text()))
        if not (folder / path).exists()
        and not (folder.name == "examples" and (folder / path).with_suffix(".py").exists())
        and not any(file.endswith(f"/{path}") for file in known)
    ]
    assert not lost


def test_the_version_is_the_newest_released_one() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    (unreleased, _), *released = headings
    assert unreleased == "Unreleased"
    assert released[0][0] == iaat_fast.__version__
    versions = [tuple(map(int, version.split("."))) for version, _ in released]
    assert versions == sorted(versions, reverse=True)
    dates = [date for _, date in released]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)
