"""The tables of a recorded comparison of methods are those of its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evidence.comparison import tables
from iaat_fast.storage import read_json
from tests.docs.snippets import ROOT

RECORDS = [
    path
    for path in sorted((ROOT / "docs" / "results").glob("*.json"))
    if "trainings" in read_json(path)
]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_tables_of_methods_are_those_of_the_record(path: Path) -> None:
    shown = path.with_suffix(".md").read_text().splitlines()
    made = tables(read_json(path))
    assert [line for line in shown if line.startswith("|")] == [
        line for line in made if line.startswith("|")
    ]
