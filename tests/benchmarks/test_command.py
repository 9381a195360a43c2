"""`python -m benchmarks NAME|all`: every benchmark rehearses on a CPU, and its record has one shape."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing

from benchmarks import __main__ as command
from benchmarks import base, registry
from benchmarks.__main__ import main
from benchmarks.registry import BENCHMARKS
from tests import forked
from tests.forked import ForkedCommands

PEERS = {"suite": "torchattacks", "autoattack": "pyautoattack"}


@pytest.fixture(autouse=True)
def random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IAAT_FAST_DATA", raising=False)


def fork_its_processes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("attacks", "distributed", "memory"):
        module: Any = importlib.import_module(
            "benchmarks.attacks.worker" if name == "attacks" else f"benchmarks.{name}"
        )
        monkeypatch.setattr(module, "subprocess", ForkedCommands)
    elif name == "plan":
        forked._start_server()
        spawn = functools.partial(torch.multiprocessing.start_processes, start_method="forkserver")
        monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != "suite" else ()) for name in BENCHMARKS],
)
def test_a_rehearsal_leaves_its_record_its_tables_and_a_figure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in PEERS and importlib.util.find_spec(PEERS[name]) is None:
        pytest.skip(f"{PEERS[name]} is not installed")
    if name == "distributed" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("it pins two cores")
    device = ["--device", "cpu"] if torch.cuda.is_available() and name in DEVICES else []
    fork_its_processes(name, monkeypatch)
    assert main([name, "--quick", *device, "--out", str(tmp_path)]) == 0
    record, tables, figure = sorted(
        (tmp_path / name).iterdir(), key=lambda path: [".json", ".md", ".png"].index(path.suffix)
    )
    assert record.stem == tables.stem == figure.stem
    assert record.stem.endswith("-1")
    content = json.loads(record.read_text())
    assert content["command"][:5] == ["python", "-m", "benchmarks", name, "--quick"]
    assert {"cpu", "torch", "python", "iaat_fast", "commit", "threads"} <= content["machine"].keys()
    assert content["setting"]["quick"]
    rows = content["rows"]
    assert rows
    assert len({(row["case"], row["provider"], row["metric"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["status"] in ("ok", "missing"), row["detail"]
        if row["p50"] is not None:
            assert row["n"] >= 1
            assert 0 < row["p20"] <= row["p50"] <= row["p80"] or row["metric"] == "peak memory"
        assert f"## {row['metric']}\n" in tables.read_text()
        assert f" {row['provider']} " in tables.read_text()


DEVICES = (
    "attacks",
    "autoattack",
    "kernels",
    "networks",
    "precisions",
    "suite",
    "survivors",
    "trace",
    "training",
)


def test_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name, text in BENCHMARKS.items():
        assert f"{name:12} {text}" in printed


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["nothing"], "nothing, expected one of ops, kernels"),
        (["ops", "--quik"], "--quik"),
        (["ops", "--pairs", "3"], "--pairs: 3, expected only with --base"),
        (["ops", "--base", "no such revision"], "--base: no such revision, expected a revision"),
        (["kernels", "--dtypes", "int8"], "int8"),
        (["plan", "--steps", "x"], "x, expected a whole number"),
        (["decoding"], "--data"),
        (["all", "--record", "it.json"], "--record: it.json, expected --out"),
    ],
)
def test_bad_arguments_are_one_line_status_2_and_no_file(
    argv: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        status = main([*argv, *(["--out", str(tmp_path)] if len(argv) > 1 else [])])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_all_runs_every_benchmark_in_a_process_of_its_own_and_names_what_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def process(words: list[str], **keywords: object) -> SimpleNamespace:
        ran.append(words[3:])
        return SimpleNamespace(returncode=2 if "decoding" in words else 0)

    monkeypatch.setattr(subprocess, "run", process)
    assert main(["all", "--quick"]) == 2
    assert ran == [[name, "--quick"] for name in BENCHMARKS]
    assert capsys.readouterr().out.endswith("not ok: decoding (2)\n")


def test_all_builds_the_base_once_and_goes_through_with_every_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built, ran = [], []

    @contextlib.contextmanager
    def build(revision: str) -> Iterator[str]:
        built.append(revision)
        yield "the base"

    def run(name: str, argv: list[str], options: object, other: object) -> int:
        ran.append((name, other))
        if name == "suite":
            raise ValueError("a package is missing")
        return 0

    monkeypatch.setattr(base, "built", build)
    monkeypatch.setattr(command, "run", run)
    assert main(["all", "--base", "v1"]) == 2
    assert built == ["v1"]
    out, err = capsys.readouterr()
    assert "benchmarks suite: error: a package is missing\n" in err
    # Decoding refuses its arguments, as it needs a folder; distributed does where there is one core.
    bad = re.findall(r"(\w+) \(2\)", out.splitlines()[-1])
    assert {"suite", "decoding"} <= set(bad) <= {"suite", "decoding", "distributed"}
    expected = [name for name in BENCHMARKS if name not in bad or name == "suite"]
    assert ran == [(name, "the base") for name in expected]


def test_both_sides_of_a_comparison_get_the_benchmarks_own_arguments(tmp_path: Path) -> None:
    argv = ["--cases", "resnet18:8", "wrn32-10:4", "--base", "main", "--steps", "2", "--pairs", "3"]
    assert registry.own([*argv, f"--out={tmp_path}"]) == [*argv[:3], "--steps", "2"]


@pytest.mark.slow
def test_a_comparison_is_a_record_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured here are processes that only say what they were asked for."""
    seconds = iter([4.0, 2.0, 1.0, 4.0])
    asked = []

    def measured(name: str, argv: list[str], folder: Path, side: str) -> tuple[list[base.Row], str]:
        asked.append((side, name, argv))
        row = base.Row(case="a step", provider="it").sampled([next(seconds)])
        new = base.Row(case="new", provider="it").sampled([1])
        return [row] if side == "base" else [row, new], "native"

    monkeypatch.setattr(base, "_measured", measured)
    other = base.Base("v1", "abc", tmp_path)
    argv = ["--no-training-step", "--base", "v1", "--pairs", "2", "--out", str(tmp_path)]
    options = registry.parse("ops", argv)
    assert command.run("ops", argv, options, other) == 0
    assert [side for side, _, _ in asked] == ["base", "work", "work", "base"]
    assert {tuple(words) for _, _, words in asked} == {("--no-training-step",)}
    (path,) = tmp_path.glob("ops/*.json")
    content = json.loads(path.read_text())
    assert content["base"] == {"revision": "v1", "commit": "abc"}
    (row,) = content["rows"]
    assert (row["metric"], row["n"], row["p50"]) == ("time, base / work", 2, 3.0)
    assert "not compared, of the work: new, it, time\n" in capsys.readouterr().out
