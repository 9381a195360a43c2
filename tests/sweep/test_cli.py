"""The command line: what it refuses, what it lists, and a sweep that is killed and continues."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep import cli
from iaat_fast.sweep.cli import main
from iaat_fast.sweep.grid import Grid, Run
from tests.forked import Forked, wait_until

BAD_LINES = [
    ("", "--out"),
    ("digit --out sweep", "did you mean 'digits'"),
    ("--out sweep --method adv", "did you mean '--methods'"),
    ("--out sweep --methods iat", "did you mean 'iaat'"),
    ("--out sweep --eps", "--eps"),
    ("--out sweep --methods iaat --eps 8", "--eps: iaat trains at no fixed radius"),
    ("--out sweep --eps 300 --methods adv", "error: --eps: "),
    ("--out sweep --seeds one", "--seeds"),
    ("--out sweep --seeds 0 0", "--seeds: 0 is given twice"),
    ("--out sweep --jobs 0", "--jobs: 0"),
    ("--out sweep --suite cifat", "did you mean 'cifar'"),
    ("--out sweep -- -- --limit 9", "--limit: after the second --, expected a --suite"),
    ("--out sweep --suite quick -- -- --limit nine", "--limit"),
    ("--out sweep --suite quick -- -- --against x", "--against: set by the sweep"),
    ("--out sweep --suite quick -- -- --limt 9", "--limt: unknown flag, did you mean '--limit'"),
    ("--out sweep -- -- --", "--: given more than twice"),
    ("--out sweep --slurm partition=gpu", "--slurm: for --launcher submitit only"),
    ("--out sweep --data nowhere", "--data nowhere: no such file"),
    ("--out sweep -- --epoch 3", "--epoch: unknown flag, did you mean '--epochs'"),
    ("--out sweep -- --epochs 0", "error: --epochs: 0"),
    ("--out sweep -- --seed 3", "--seed: set by the sweep"),
    ("--out sweep -- --device cuda:99", "cuda:99"),
]


def test_radii_of_the_unit_scale_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"--out {tmp_path / 'sweep'} --methods adv --eps 8/255 0.03 --dry-run"
    assert main(line.split()) == 0
    out, err = capsys.readouterr()
    assert "adv-eps8-seed0" in out
    assert err.startswith("python -m iaat_fast.sweep: warning: --eps: 0.03/255")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("line", "expected"), BAD_LINES)
def test_bad_input_is_status_2_and_one_line_and_nothing_is_started(
    line: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert expected in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_another_grid_in_the_same_folder_is_refused(
    tmp_path: Path, begin: Callable[[Run], RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = Grid(methods=("clean",), flags=("--epochs", "3")).runs(tmp_path)
    begin(run)
    assert main(["--methods", "clean", "--out", str(tmp_path), "--", "--epochs", "4"]) == 2
    assert "--epochs (3 there, 4 given)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clean-seed0"]


def test_a_dry_run_lists_states_and_commands_and_writes_nothing(
    tmp_path: Path,
    begin: Callable[[Run], RunFolder],
    train: Callable[[Run], RunFolder],
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Grid(methods=("clean", "adv", "iaat")).runs(tmp_path)
    begin(runs[0])
    train(runs[1])
    before = sorted(tmp_path.rglob("*"))
    line = ["--out", str(tmp_path), "--suite", "quick", "--dry-run"]
    assert main([*line, "--", "--device", "cpu", "--", "--limit", "9"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w+) +(\S+)$", text, re.MULTILINE) == [
        *(("resumes", "clean-seed0.train"), ("new", "clean-seed0.evaluate")),
        *(("done", "adv-eps51-seed0.train"), ("new", "adv-eps51-seed0.evaluate")),
        *(("new", "iaat-seed0.train"), ("new", "iaat-seed0.evaluate")),
    ]
    assert (
        f"-m iaat_fast.train digits --method iaat --seed 0 --device cpu --out {runs[2].folder}"
        in text
    )
    assert f"-m iaat_fast.evaluate {runs[2].folder} --suite quick --limit 9" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_sweep_prints_its_table_and_the_report_and_starts_nothing(
    tmp_path: Path, train: Callable[[Run], RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    for run in Grid().runs(tmp_path):
        train(run)
    assert main(["--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "3 jobs, 3 of them done" in text
    assert "started" not in text
    assert re.search(r"iaat-seed0 +│ done +│ +90.00 │ +50.00 │ +76.50", text)
    assert f"-m iaat_fast.report {tmp_path}/clean-seed0 {tmp_path}/adv-eps51-seed0" in text
    assert f"--out {tmp_path}/report" in text


def test_failed_jobs_end_in_status_1_and_their_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = property(lambda run: (sys.executable, "-S", "-c", "raise SystemExit('diverged')"))
    monkeypatch.setattr(Run, "command", command)
    line = ["--methods", "clean", "--out", str(tmp_path), "--suite", "quick"]
    assert main(line) == 1
    out, err = capsys.readouterr()
    assert "clean-seed0.train: FAILED, diverged" in out
    assert err.splitlines() == [
        "clean-seed0.train failed: diverged (exit status 1)",
        "clean-seed0.evaluate not started: clean-seed0.train failed",
    ]


# 15 steps of 10 attack steps each: training lasts about half a second.
TRAINING = [
    *["--limit=80", "--batch-size=16", "--epochs=3", "--warmup-epochs=1", "--steps=10"],
    *["--checkpoint-steps=1", "--device=cpu", "--eval-steps=1", "--eval-restarts=1"],
    "--no-tensorboard",
]


def sweep(out: Path, *, forking: bool = True) -> Forked:
    words = ["--methods", "iaat", "--out", out, "--", *TRAINING]
    return Forked("iaat_fast.sweep", *words, forking=forking)


def start(out: Path) -> Forked:
    """A sweep of one run, in a process of its own; returns once the run has a checkpoint."""
    process = sweep(out)
    checkpoint = RunFolder(out / "iaat-seed0").checkpoint_path
    written = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    wait_until(lambda: checkpoint.exists() and checkpoint.stat().st_mtime_ns != written, process)
    return process


@pytest.mark.slow
def test_a_sweep_stopped_and_killed_ends_with_the_bits_of_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "sweep"
    folder = RunFolder(out / "iaat-seed0")

    stopped = start(out)
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate()
    assert stopped.returncode == 143
    assert err.count("\n") == 1
    assert f"continue with {cli.as_typed([sys.executable])} -m iaat_fast.sweep" in err
    steps = [folder.checkpoint()["step"]]

    killed = start(out)
    killed.kill()
    killed.communicate()
    last = sweep(out, forking=False)  # its job is a Python of its own
    text, err = last.communicate()
    assert last.returncode == 0, err
    assert "1 jobs, 0 of them done" in text
    steps.append(folder.checkpoint()["step"])
    assert 0 < steps[0] < steps[1] == 15

    reference = RunFolder(tmp_path / "reference")
    words = ["--method", "iaat", *TRAINING, "--out", reference.path]
    train = Forked("iaat_fast.train", *words)
    _, err = train.communicate()
    assert train.returncode == 0, err
    one, other = folder.checkpoint(), reference.checkpoint()
    assert torch.equal(one["epsilon"], other["epsilon"])
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
