"""Jobs handed to submitit: its own local executor in the place of SLURM."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.cli import main
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.slurm import Command, SubmititLauncher, parse_parameters
from tests.forked import wait_until

pytest.importorskip("submitit")


# What a training leaves of itself, in no time.
TRAINED = """
import json, os
print("epoch 1/1")
os.makedirs("{0}")
for name, content in (("config", {{}}), ("results", {{"natural_accuracy": 0.9, "samples": 64}})):
    json.dump(content, open(f"{0}/{{name}}.json", "w"))
"""


@pytest.mark.slow
def test_submitit_carries_out_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = property(
        lambda run: (sys.executable, "-S", "-c", TRAINED.format(run.folder.absolute()))
    )
    monkeypatch.setattr(Run, "command", command)
    line = ["--methods", "clean", "--out", str(tmp_path), "--launcher", "submitit"]
    assert main([*line, "--cluster", "local", "--slurm", "timeout_min=10", "partition=gpu"]) == 0
    assert RunFolder(tmp_path / "clean-seed0").results()["samples"] == 64
    assert "clean-seed0.train: done" in capsys.readouterr().out
    assert "epoch 1/1" in (tmp_path / "logs" / "clean-seed0.train.log").read_text()
    assert list((tmp_path / "logs" / "submitit").glob("*_result.pkl"))


def test_a_submitted_job_gives_its_exit_status_and_its_log(tmp_path: Path) -> None:
    """In this process, by submitit's executor for debugging."""
    launcher = SubmititLauncher(tmp_path, 1, cluster="debug")
    code = "import sys; print('diverged'); sys.exit(3)"
    job = launcher.start("job", [sys.executable, "-S", "-c", code], tmp_path / "job.log")
    wait_until(lambda: job.poll() is not None)
    assert job.poll() == 3
    assert (tmp_path / "job.log").read_text() == "diverged\n"


# Saves at SIGTERM, as training does, and is deaf to what SLURM sends before.
SAVING = """
import signal, sys, time
signal.alarm(60)
def save(*_):
    open("{0}/saved", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open("{0}/running", "w").close()
time.sleep(60)
"""


def preempted(folder: Path) -> NoReturn:
    """A job under a handler of USR2 as submitit's, in a process group of its own."""
    os.setpgid(0, 0)
    words = [sys.executable, "-S", "-c", SAVING.format(folder)]
    command = Command(words, folder / "job.log")

    def requeue(*_: object) -> None:
        again = command.checkpoint()
        os._exit(9 if again.function.command == command.command else 1)

    signal.signal(signal.SIGUSR2, requeue)
    command()
    os._exit(0)


def test_a_job_that_is_preempted_saves_before_it_is_queued_again(tmp_path: Path) -> None:
    """SLURM sends USR2 to all processes of the job."""
    job = os.fork()
    if not job:
        preempted(tmp_path)
    wait_until((tmp_path / "running").exists)
    os.killpg(job, signal.SIGUSR2)
    _, status = os.waitpid(job, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert (tmp_path / "saved").exists()


def test_a_command_returns_its_exit_status(tmp_path: Path) -> None:
    code = "import sys; sys.exit(7)"
    assert Command([sys.executable, "-S", "-c", code], tmp_path / "log")() == 7


def test_parameters_are_numbers_where_they_look_like_them() -> None:
    assert parse_parameters(["partition=gpu", "timeout_min=60", "mem_gb=2.5", "a=b=c"]) == {
        "partition": "gpu",
        "timeout_min": 60,
        "mem_gb": 2.5,
        "a": "b=c",
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--slurm partition", "--slurm: 'partition', expected KEY=VALUE"),
        ("--slurm partitoin=gpu --cluster local", "partitoin"),
        ("--slurm timeout_min=soon --cluster local", "timeout_min"),
        ("", "no SLURM here"),
    ],
)
def test_bad_parameters_are_refused_before_a_file_is_written(
    flags: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "")
    line = ["--out", str(tmp_path / "sweep"), "--launcher", "submitit", *flags.split()]
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "sweep").exists()


def test_without_submitit_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    line = ["--out", str(tmp_path / "sweep"), "--launcher", "submitit", "--cluster", "local"]
    assert main(line) == 2
    assert "pip install 'iaat-fast[slurm]'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
