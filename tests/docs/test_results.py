"""The tables of recorded evidence are those of its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import comparison, write
from benchmarks.evidence.grids import GRIDS
from iaat_fast.storage import read_json
from tests.docs.snippets import ROOT

RECORDS = {
    path: record
    for path in sorted((ROOT / "docs" / "results").glob("*.json"))
    if (record := read_json(path)).get("title") in {grid.title for grid in GRIDS.values()}
}
# Of the tables; a sentence that begins so follows each of the curve's.
BEGINNINGS = ("|", "## ", "Beyond: ")


def tables(record: dict[str, Any]) -> list[str]:
    if "trainings" in record:
        return comparison.tables(record)
    (grid,) = (grid for grid in GRIDS.values() if grid.title == record["title"])
    return write.tables(grid, record)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_tables_of_a_page_are_those_of_its_record(path: Path) -> None:
    shown = path.with_suffix(".md").read_text().splitlines()
    made = tables(RECORDS[path])
    assert [line for line in shown if line.startswith(BEGINNINGS)] == [
        line for line in made if line.startswith(BEGINNINGS)
    ]
