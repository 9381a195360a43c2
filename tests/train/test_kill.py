"""A run of the real command, killed or interrupted, goes on as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from iaat_fast.run_folder import RunFolder
from tests.forked import Forked, wait_until

# 15 steps, 5 of them in the warm-up. 10 attack steps, so that training lasts about half a second.
RUN = [
    *["--limit=80", "--batch-size=16", "--epochs=3", "--warmup-epochs=1", "--steps=10"],
    *["--decay-epochs", "2"],
    *["--checkpoint-steps=2", "--snapshot-epochs=1", "--device=cpu"],
    *["--eval-steps=1", "--eval-restarts=1", "--no-tensorboard"],
]


def start(folder: Path, *flags: str) -> Forked:
    """The command in a process of its own; returns once it has begun to train."""
    process = Forked("iaat_fast.train", *flags, "--out", folder)
    assert process.first_line().startswith("training iaat"), process.communicate()
    return process


def wait_for_a_checkpoint(folder: Path, process: Forked) -> None:
    """Until the run is at step 2 or a little later, of 15."""
    wait_until(RunFolder(folder).checkpoint_path.exists, process)


def finish(folder: Path, *flags: str) -> RunFolder:
    process = start(folder, *flags)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return RunFolder(folder)


def assert_same_bits(one: RunFolder, other: RunFolder) -> None:
    first, second = one.checkpoint(), other.checkpoint()
    assert first["step"] == second["step"] == 15
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert torch.equal(first["epsilon"], second["epsilon"])
    rows = [[{**row, "seconds": None} for row in run.metrics()] for run in (one, other)]
    assert rows[0] == rows[1]
    assert list(one.epsilon_snapshots()) == list(other.epsilon_snapshots()) == [1, 2, 3]


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, float]:
    """The run never killed, and how many seconds its training took."""
    folder = finish(tmp_path_factory.mktemp("unkilled") / "run", *RUN)
    assert folder.checkpoint()["epsilon"].std() > 0
    return folder, sum(row["seconds"] for row in folder.metrics())


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_training_is_one_line(tmp_path: Path, signum: int, status: int) -> None:
    command = [sys.executable, "-m", "iaat_fast.train", *RUN, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc to see the process import torch")
    while "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signum)
    _, err = process.communicate()
    assert process.returncode == status
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigkill_at_two_random_moments_changes_no_bit(
    unkilled: tuple[RunFolder, float], tmp_path: Path
) -> None:
    reference, seconds = unkilled
    moments = random.Random()
    steps = []
    for kill in range(2):
        process = start(tmp_path / "run", *(["--resume"] if kill else RUN))
        time.sleep(moments.uniform(0, 0.6 * seconds))
        process.kill()
        process.communicate()
        folder = RunFolder(tmp_path / "run")
        steps.append(folder.checkpoint()["step"] if folder.checkpoint_path.exists() else 0)
    assert steps == sorted(steps), "a kill never loses a checkpoint"
    assert_same_bits(finish(tmp_path / "run", "--resume"), reference)


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_resume_and_changes_no_bit(
    unkilled: tuple[RunFolder, float], tmp_path: Path
) -> None:
    reference, _ = unkilled
    process = start(tmp_path / "run", *RUN)
    wait_for_a_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.startswith("stopping after this step; again to stop now\nstopped after step ")
    assert err.count("\n") == 2
    assert f"--resume --out {tmp_path / 'run'}" in err
    assert RunFolder(tmp_path / "run").checkpoint()["step"] < 15
    assert_same_bits(finish(tmp_path / "run", "--resume"), reference)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path / "run", *RUN)
    wait_for_a_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    folder = RunFolder(tmp_path / "run")
    assert 2 <= folder.checkpoint()["step"] <= 15
