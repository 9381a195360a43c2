"""Rows, records and their names; and that the records which the documentation names are there."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from benchmarks.machine import short_name
from benchmarks.record import Record, Row, numbered, quantity, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def record(path: Path, seconds: float = float("inf")) -> Record:
    options = argparse.Namespace(time_limit=seconds, out=Path("out"), quick=True)
    return Record("it", ["--quick"], options, path)


def test_percentiles_are_of_the_samples() -> None:
    row = Row(case="a", provider="b").sampled(range(11))
    assert (row.n, row.p20, row.p50, row.p80) == (11, 2, 5, 8)


def test_what_is_wrong_keeps_no_time() -> None:
    row = Row(case="a", provider="b").sampled([1.0]).refused("wrong", "another result")
    assert (row.status, row.detail, row.n, row.p50) == ("wrong", "another result", None, None)
    assert Row(case="a", provider="b").failed(RuntimeError("out of\nmemory")).detail == (
        "RuntimeError: out of memory"
    )


def test_a_run_that_is_killed_leaves_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "new" / "it.json"
    running = record(path)
    assert not path.parent.exists()
    running.add(Row(case="a", provider="b").sampled([1.0]))
    content = json.loads(path.read_text())
    assert [row["provider"] for row in content["rows"]] == ["b"]
    assert content["setting"] == {"time_limit": "inf", "out": "out", "quick": True}
    assert [entry.name for entry in path.parent.iterdir()] == ["it.json"]


def test_what_the_time_limit_leaves_out_is_noted(tmp_path: Path) -> None:
    assert not record(tmp_path / "a").out_of_time("a case")
    late = record(tmp_path / "b", seconds=-1)
    assert late.out_of_time("a case")
    assert late.content()["left_out"] == ["a case"]


def test_records_are_numbered_by_machine_whatever_their_suffix(tmp_path: Path) -> None:
    assert numbered(tmp_path / "none", "h100").name == "h100-1.json"
    for name in ("h100-1.json", "h100-2.txt", "h100-10.json", "h100-x.json", "h100-80gb-30.json"):
        (tmp_path / name).touch()
    assert numbered(tmp_path, "h100").name == "h100-11.json"
    assert numbered(tmp_path, "epyc-avx2").name == "epyc-avx2-1.json"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD EPYC", "epyc"),
        ("AMD EPYC 7763 64-Core Processor", "epyc-7763"),
        ("Intel(R) Xeon(R) Processor", "xeon"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "core-i7-9750h"),
        ("", "machine"),
    ],
)
def test_machines_have_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_table_has_a_column_per_figure_and_says_why_there_is_no_time() -> None:
    rows = [
        Row(case="a|b", provider="one", figures={"over": {"x": 1.5, "y": 2}, "peak_bytes": 2**21}),
        Row(case="a|b", provider="two", figures={"left": [1, 2], "step_s": 0.002}),
    ]
    rows[0].sampled([1.0])
    rows[1].refused("missing", "not here")
    lines = [[cell.strip() for cell in line.split(" | ")] for line in table(rows).splitlines()]
    heads = ["case", "provider", "p50 [p20, p80]", "over: x", "over: y", "peak bytes", "step s"]
    assert [cell.strip("| ") for cell in lines[0]] == heads
    assert [cell.strip("| ") for cell in lines[2]] == [
        *("a\\|b", "one", "1 s [1 s, 1 s]", "1.5", "2", "2 MiB", ""),
    ]
    assert [cell.strip("| ") for cell in lines[3]] == [
        *("", "two", "missing: not here", "", "", "", "2 ms"),
    ]
    assert len({len(line) for line in table(rows).splitlines()}) == 1


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        *((2.5, "s", "2.5 s"), (0.0123456, "s", "12.35 ms"), (4e-5, "s", "40 µs"), (0, "s", "0 s")),
        *((3 * 2**19, "B", "1.5 MiB"), (0.25, "", "0.25")),
    ],
)
def test_quantities_have_four_digits_and_a_readable_unit(
    value: float, unit: str, text: str
) -> None:
    assert quantity(value, unit) == text


def named() -> list[str]:
    """Paths under benchmarks/results that the documentation names."""
    text = "".join(path.read_text() for path in DOCUMENTS)
    return sorted(set(re.findall(r"benchmarks/results[\w./-]*\w", text)))


def test_every_record_that_the_documentation_names_is_there() -> None:
    assert len(named()) > 10
    assert [path for path in named() if not (ROOT / path).exists()] == []


def test_every_record_is_named_after_its_benchmark_and_machine() -> None:
    paths = [path.relative_to(RESULTS) for path in RESULTS.rglob("*") if path.is_file()]
    assert paths
    wrong = [
        str(path)
        for path in paths
        if not re.fullmatch(r"[a-z]+/[a-z][a-z0-9-]*-\d+\.(json|txt)", str(path))
    ]
    assert wrong == []
