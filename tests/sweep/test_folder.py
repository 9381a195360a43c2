"""A folder holds one sweep: it may be extended, is not contradicted, and has one at work in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.folder import SweepFolder
from iaat_fast.sweep.grid import Grid, Run


def record(path: Path, **grid: Any) -> list[Run]:
    folder = SweepFolder(path)
    everything = folder.extended(Grid(**grid).runs(path))
    folder.record(everything)
    return everything


def test_a_grid_is_read_back_as_it_was_recorded(tmp_path: Path) -> None:
    runs = record(tmp_path, seeds=(0, 1), flags=("--epochs", "3"))
    assert SweepFolder(tmp_path).recorded() == runs


def test_methods_radii_and_seeds_may_join(tmp_path: Path) -> None:
    record(tmp_path, methods=("adv",), eps=(0.1,))
    record(tmp_path, methods=("adv",), eps=(0.2,), seeds=(1,))
    everything = record(tmp_path, methods=("adv", "iaat"), eps=(0.1,), warmup="both")
    assert [run.name for run in everything] == [
        *("adv-eps25.5-seed0", "adv-eps51-seed1"),
        *("iaat-seed0", "iaat-no-warmup-seed0"),
    ]


@pytest.mark.parametrize(
    ("grid", "field"),
    [
        ({"flags": ("--epochs", "4")}, r"optim.epochs \(3 there, 4 given\)"),
        ({"flags": ("--epochs", "4"), "seeds": (7,)}, "optim.epochs"),
        ({"flags": ("--epochs", "3", "--warmup-epochs", "2")}, "epsilon.warmup_epochs"),
        ({"flags": ("--epochs", "3", "--gamma", "2")}, "epsilon.gamma"),
        ({"preset": "cifar10-resnet18"}, "preset"),
    ],
)
def test_another_configuration_is_refused_by_field(
    tmp_path: Path, grid: dict[str, Any], field: str
) -> None:
    record(tmp_path, methods=("iaat",), flags=("--epochs", "3"))
    before = SweepFolder(tmp_path).sweep_path.read_bytes()
    with pytest.raises(ValueError, match=field):
        record(tmp_path, **{"methods": ("iaat",), **grid})
    assert SweepFolder(tmp_path).sweep_path.read_bytes() == before


def test_a_flag_of_some_methods_only_is_given_to_theirs(tmp_path: Path) -> None:
    flags = ("--epochs", "3", "--gamma=2", "--mart_beta", "4")
    grid = {"eps": (0.1,), "flags": flags, "warmup": "both"}
    runs = record(tmp_path, methods=("adv", "mart", "iaat"), **grid)
    assert ["--gamma=2" in run.words for run in runs] == [False, False, True, True]
    assert ["--mart_beta" in run.words for run in runs] == [False, True, False, False]
    assert len(record(tmp_path, methods=("clean", "mart", "iaat"), **grid)) == 5


def test_a_flag_that_none_of_the_methods_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--gamma 2: not read by method 'adv'"):
        record(tmp_path, methods=("adv", "clean"), flags=("--gamma", "2"))


def test_what_is_not_part_of_the_arithmetic_may_differ(tmp_path: Path) -> None:
    record(tmp_path, flags=("--epochs", "3"))
    record(tmp_path, flags=("--epochs=3", "--device", "cpu", "--no-tensorboard"))


def test_a_run_of_another_configuration_in_the_way_is_refused(
    tmp_path: Path, begin: Callable[[Run], RunFolder]
) -> None:
    (run,) = Grid(methods=("clean",), flags=("--epochs", "3")).runs(tmp_path)
    begin(run)
    with pytest.raises(ValueError, match=r"clean-seed0: holds a run .* optim.epochs"):
        record(tmp_path, methods=("clean",))
    (tmp_path / "iaat-seed0").mkdir()
    (tmp_path / "iaat-seed0" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="iaat-seed0: exists and is no run folder"):
        record(tmp_path, methods=("iaat",))


def test_a_folder_of_something_else_is_refused_as_training_does(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(FileExistsError, match=r"exists and is no sweep's folder .*, but thesis"):
        record(tmp_path, methods=("clean",))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_folder_of_runs_may_become_a_sweeps(
    tmp_path: Path, begin: Callable[[Run], RunFolder]
) -> None:
    begin(Grid(methods=("adv",)).runs(tmp_path)[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "sweep.lock").touch()
    record(tmp_path, methods=("clean",))
    (tmp_path / "notes.txt").write_text("what is added later is no matter")
    assert len(record(tmp_path, methods=("clean",), seeds=(1,))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("{}", "schema None, expected 1"),
        ('{"schema": 2, "runs": {}}', "newer version"),
        ('{"schema": 1, "runs": {"a": {}}}', "not the grid of a sweep"),
    ],
)
def test_a_damaged_grid_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=rf"sweep.json: .*{message}"):
        SweepFolder(tmp_path).recorded()


def test_a_grid_names_the_training_flags(tmp_path: Path) -> None:
    record(tmp_path, methods=("clean",), flags=("--epochs", "3"))
    entry = json.loads((tmp_path / "sweep.json").read_text())["runs"]["clean-seed0"]
    assert entry["train"] == ["digits", "--method", "clean", "--seed", "0", "--epochs", "3"]


HOLD = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.pwrite(lock, sys.argv[2].encode() or str(os.getpid()).encode(), 0)
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: SweepFolder, owner: str = "") -> subprocess.Popen[str]:
    """A process that holds the lock as the sweep `owner`, or as one of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.lock_path), owner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_sweep_is_refused_at_once_and_the_first_named(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    other = hold(folder)
    try:
        refused = pytest.raises(BlockingIOError, match=f"at work here, process {other.pid}")
        with refused, folder.lock(60, say=print):
            pass
    finally:
        other.communicate()
    with folder.lock(0, say=print):
        pass


def test_the_jobs_of_a_killed_sweep_are_waited_for(tmp_path: Path) -> None:
    folder, dead = SweepFolder(tmp_path), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    orphan = hold(folder, str(dead.pid))
    try:
        refused = pytest.raises(BlockingIOError, match="a job of an earlier sweep")
        with refused, folder.lock(0, say=lambda text: None):
            pass
        with folder.lock(60, say=lambda text: orphan.communicate() and None):
            assert orphan.poll() == 0
    finally:
        orphan.kill()
        orphan.wait()
