"""Another revision measured next to this one, in a worktree that is gone afterwards."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import base
from benchmarks.record import Record, Row

# A benchmark that takes as long as the library says, and whose library says whether it was built.
MAIN = """
import json, sys
from iaat_fast import SECONDS, built
rows = [dict(case="a step", provider="it", n=1, p20=SECONDS, p50=SECONDS, p80=SECONDS)]
rows += [dict(case=built, provider="it")]
content = {"rows": rows, "machine": {"backend": built if "--strict" in sys.argv else "native"}}
open(sys.argv[sys.argv.index("--record") + 1], "w").write(json.dumps(content))
"""
LIBRARY = """
from pathlib import Path
SECONDS = {seconds}
built = "built" if Path(__file__).with_name("_C.so").exists() else "not built"
"""
SETUP = "import sys; from pathlib import Path; {first}; Path('iaat_fast/_C.so').touch()"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The commit "old" takes 4 s, "broken" does not build, and the working tree takes 2 s with newer benchmarks."""
    root = tmp_path / "work"
    for name in ("benchmarks/results", "iaat_fast"):
        (root / name).mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").touch()
    (root / "benchmarks" / "__main__.py").write_text("an older benchmark\n")
    (root / "benchmarks" / "results" / "a.json").write_text("{}")
    (root / "iaat_fast" / "__init__.py").write_text(LIBRARY.format(seconds=4.0))
    git(root, "init", "--quiet")
    for tag, first in (("broken", "sys.exit('no compiler')"), ("old", "pass")):
        (root / "setup.py").write_text(SETUP.format(first=first))
        git(root, "add", ".")
        git(root, "commit", "--quiet", "--message", tag)
        git(root, "tag", tag)
    (root / "benchmarks" / "__main__.py").write_text(MAIN)
    (root / "iaat_fast" / "__init__.py").write_text(LIBRARY.format(seconds=2.0))
    return root


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=it", "-c", "user.email=it@example.org"]
    command = ["git", "-C", str(root), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_base_is_built_on_its_own_and_both_are_measured_by_these_benchmarks(
    repository: Path, tmp_path: Path
) -> None:
    record = Record("ops", [], argparse.Namespace(), tmp_path / "record.json")
    with base.built("old", repository) as other:
        assert git(repository, "rev-parse", "old").strip() == other.commit
        assert not (other.folder / "benchmarks" / "results").exists()
        rows = list(base.compare(other, record, [], 2, repository))
    assert [(row.case, row.metric, row.n, row.p50) for row in rows] == [
        ("a step", "time, base / work", 2, 2.0)
    ]
    assert rows[0].figures["base_p50_s"] == 4.0
    assert record.facts["unmatched"] == {
        "base": ["built, it, time"],
        "work": ["not built, it, time"],
    }
    assert not other.folder.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("revision", "reason"),
    [("broken", "broken, it does not build: no compiler"), ("new", "new, expected a revision")],
)
def test_a_base_that_cannot_be_had_is_refused_and_leaves_nothing(
    repository: Path, revision: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"--base: {reason}"), base.built(revision, repository):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_benchmark_that_the_base_cannot_run_is_told(repository: Path, tmp_path: Path) -> None:
    (repository / "benchmarks" / "__main__.py").write_text("from iaat_fast import newer\n")
    record = Record("ops", [], argparse.Namespace(), tmp_path / "record.json")
    with base.built("old", repository) as other, pytest.raises(ValueError, match=r"base: .*newer"):
        list(base.compare(other, record, [], 1, repository))


def test_two_backends_are_not_compared(repository: Path, tmp_path: Path) -> None:
    record = Record("ops", [], argparse.Namespace(), tmp_path / "record.json")
    told = "old, its ops run on built and these on not built"
    with base.built("old", repository) as other, pytest.raises(ValueError, match=told):
        list(base.compare(other, record, ["--strict"], 1, repository))


def run(**seconds: float | None) -> Mapping[Any, Row]:
    rows = [Row(case=case, provider="it", p50=p50) for case, p50 in seconds.items()]
    return {row.key: row for row in rows}


def test_ratios_are_of_pairs_and_what_only_one_side_has_is_named() -> None:
    before = [run(step=4.0, gone=1.0, computed=None), run(step=9.0, gone=1.0, computed=None)]
    after = [run(step=2.0, new=1.0, computed=None), run(step=3.0, new=1.0, computed=None)]
    (row,), unmatched = base.ratios(before, after)
    assert (row.case, row.n, row.p50, row.unit) == ("step", 2, 2.5, "")
    assert unmatched == {"base": ["gone, it, time"], "work": ["new, it, time"]}


def test_a_row_that_failed_on_one_side_is_not_compared() -> None:
    broken = Row(case="step", provider="it").refused("failed", "it raised")
    rows, unmatched = base.ratios([run(step=4.0)], [{broken.key: broken}])
    assert rows == []
    assert unmatched == {"base": [], "work": ["step, it, time"]}
