"""The benchmark of decoding says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main


def test_a_record_has_rates_sizes_and_the_papers_need(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    argv = ["--data", str(image_folder), "--limit", "6", "--rounds", "2", "--workers", "1"]
    assert main(["decoding", *argv, "--record", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["images"] == 6
    for row in record["rows"]:
        rates = row["figures"]["rates"]
        assert len(rates) == row["n"] == 2
        assert min(rates) <= row["figures"]["images_per_second"] <= max(rates)
    assert 20 <= record["mean_size"]["width"] < 60
    assert record["need_per_gpu"] == pytest.approx(6.65, abs=0.01)
    assert record["dali"] == "not measured"
