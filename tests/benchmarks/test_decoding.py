"""The benchmark of decoding: it runs, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import decoding


def test_a_record_has_rates_sizes_and_the_papers_need(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoding.json"
    arguments = ["--data", str(image_folder), "--limit", "6", "--rounds", "2", "--workers", "1"]
    assert decoding.main([*arguments, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["images"] == 6
    for found in record["images_per_second"].values():
        assert len(found["rates"]) == 2
        assert min(found["rates"]) <= found["rate"] <= max(found["rates"])
    assert 20 <= record["mean_size"]["width"] < 60
    assert record["need_per_gpu"] == pytest.approx(6.65, abs=0.01)
    assert record["dali"] == "not measured"
