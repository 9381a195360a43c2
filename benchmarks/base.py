"""Measures another revision of iaat_fast against this one: processes take turns, results are compared row by row."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Record, Row, say

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Base:
    """A revision as given on the command line, its commit, and the folder in which it is built."""

    revision: str
    commit: str
    folder: Path


@contextlib.contextmanager
def built(revision: str, root: Path = ROOT) -> Iterator[Base]:
    """The revision in a temporary worktree, with its own build of the extension and the benchmarks of this checkout, so
    that both sides are measured by the same code. torch and all other packages are those of this Python.

    Raises:
        ValueError: there is no such revision, or it does not build.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        raise ValueError(f"--base: {revision}, expected a revision of the repository in {root}")
    with tempfile.TemporaryDirectory(prefix="benchmarks-base-") as parent:
        folder = Path(parent) / "base"
        if _git(root, "worktree", "add", "--quiet", "--detach", str(folder), commit) is None:
            raise ValueError(f"--base: {revision}, git made no worktree of it")
        try:
            shutil.rmtree(folder / "benchmarks", ignore_errors=True)
            ignored = shutil.ignore_patterns("results", "__pycache__")
            shutil.copytree(root / "benchmarks", folder / "benchmarks", ignore=ignored)
            say(f"building {revision} ({commit[:7]})")
            made = subprocess.run(
                [sys.executable, "setup.py", "build_ext", "--inplace"],
                cwd=folder,
                capture_output=True,
                text=True,
            )
            if made.returncode:
                raise ValueError(f"--base: {revision}, it does not build: {_last(made.stderr)}")
            yield Base(revision, commit, folder)
        finally:
            _git(root, "worktree", "remove", "--force", str(folder))


def compare(
    base: Base, record: Record, argv: Sequence[str], pairs: int, root: Path = ROOT
) -> Iterator[Row]:
    """A row for each row of the benchmark: the ratio of base to work (this checkout), over pairs of processes.

    Rows that only one side has, or that were not measured, are noted in the record's facts as `unmatched`.

    Raises:
        ValueError: a side does not run, or the two sides run their ops on different backends.
    """
    sides: dict[str, list[dict[Any, Row]]] = {"base": [], "work": []}
    folders, backends = {"base": base.folder, "work": root}, {}
    record.facts["base"] = {"revision": base.revision, "commit": base.commit}
    for pair in range(pairs):
        # In alternating order, so that a machine that warms up affects both equally.
        for side in sorted(sides, reverse=bool(pair % 2)):
            say(f"{side}, {pair + 1} of {pairs}")
            rows, backends[side] = _measured(record.benchmark, argv, folders[side], side)
            sides[side].append({row.key: row for row in rows})
        if len(set(backends.values())) > 1:
            raise ValueError(
                f"--base: {base.revision}, its ops run on {backends['base']} and these on {backends['work']}: "
                "expected the same, build both for the same devices"
            )
    rows, record.facts["unmatched"] = ratios(sides["base"], sides["work"])
    if not rows:
        raise ValueError(f"--base: {base.revision}, no row of it was measured that this has too")
    yield from rows


def ratios(
    base: Sequence[Mapping[Any, Row]], work: Sequence[Mapping[Any, Row]]
) -> tuple[list[Row], dict[str, list[str]]]:
    """Ratios base / work, pair by pair, of the rows that all runs have measured; and the other rows' names by side."""
    timed = [
        [{key: row.p50 for key, row in run.items() if row.p50} for run in runs]
        for runs in (base, work)
    ]
    both = [key for key in timed[1][0] if all(key in run for side in timed for run in side)]
    found = []
    for key in both:
        before, after = ([run[key] for run in side] for side in timed)
        case, provider, metric = key
        row = Row(case=case, provider=provider, metric=f"{metric}, base / work", unit="")
        row.sampled(b / a for b, a in zip(before, after, strict=True))
        unit = {"s": "_s", "B": "_bytes"}.get(work[0][key].unit, "")
        row.figures = {
            f"base_p50{unit}": statistics.median(before),
            f"work_p50{unit}": statistics.median(after),
        }
        found.append(row)
    everywhere = set.intersection(*(set(run) for run in (*base, *work)))
    unmatched = {
        side: [
            ", ".join(key)
            for key, row in {key: row for run in runs for key, row in run.items()}.items()
            # A row without a time on both sides, which is computed and not timed, is not reported.
            if key not in everywhere or (key not in both and row.status != "ok")
        ]
        for side, runs in (("base", base), ("work", work))
    }
    return found, unmatched


def _measured(name: str, argv: Sequence[str], folder: Path, side: str) -> tuple[list[Row], str]:
    """The rows of a benchmark run in a new process with the iaat_fast of `folder`; and the backend of its ops."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "record.json"
        command = [sys.executable, "-m", "benchmarks", name, *argv, "--record", str(path)]
        python_path = filter(None, [str(folder), os.environ.get("PYTHONPATH")])
        run = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path)},
            capture_output=True,
            text=True,
        )
        # Status 1 means that some rows are wrong or failed: the others are compared.
        if run.returncode not in (0, 1) or not path.is_file():
            raise ValueError(
                f"{side}: the benchmark ended with {run.returncode}: {_last(run.stderr)}"
            )
        content = json.loads(path.read_text())
        return [Row(**row) for row in content["rows"]], content["machine"]["backend"]


def _git(root: Path, *words: str) -> str | None:
    """What git prints; None if it fails."""
    run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    return None if run.returncode else run.stdout.strip()


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1]
