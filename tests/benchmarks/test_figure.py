"""The picture of the front page shows what the committed records hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.figure import NAMES, panels
from benchmarks.record import quantity

ROOT = Path(__file__).resolve().parents[2]


def test_the_picture_of_the_readme_has_every_median_of_the_records_that_it_names() -> None:
    text = (ROOT / "README.md").read_text()
    (records, picture) = re.findall(r"benchmarks figure ((?:\S+\.json )+)--out (\S+\.svg)", text)[0]
    assert f"]({picture})" in text
    drawn = (ROOT / picture).read_text()
    every = [panel for record in records.split() for panel in panels(ROOT / record)]
    assert len(every) == 3
    for panel in every:
        for line in panel.title.splitlines():
            assert line in drawn
        for bar in panel.bars:
            assert quantity(bar.p50, "s") in drawn
            assert NAMES[bar.provider] in drawn


def test_the_same_record_is_drawn_as_the_same_file(tmp_path: Path) -> None:
    record = ROOT / "benchmarks/results/attacks/xeon-avx512-2.json"
    for name in ("a.svg", "b.svg"):
        assert main(["figure", str(record), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_file_that_is_no_record_of_attacks_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text('{"rows": []}')
    assert main(["figure", str(tmp_path / "a.json"), "--out", str(tmp_path / "a.svg")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.json: expected a record of `python -m benchmarks attacks`" in line
    assert not (tmp_path / "a.svg").exists()
