"""What is shown of a run while it goes: bars on a terminal, else lines with the time to go; an answer to Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iaat_fast.train import metrics
from iaat_fast.train.cli import main as train
from iaat_fast.train.metrics import Progress
from iaat_fast.train.signals import StopSignals


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Standard output and error are a terminal; afterwards, what is left to be seen of each of its lines."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    written, seen = bytearray(), []

    def read() -> None:
        with contextlib.suppress(OSError):  # once it is closed
            while found := os.read(ours, 4096):
                written.extend(found)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield seen
    reader.join()
    os.close(ours)
    seen += [row.rpartition("\r")[2] for row in written.decode().split("\r\n")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_on_a_terminal_a_line_stands_above_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(monkeypatch) as lines:
        progress = Progress(steps=4, done=0, epochs=2, adaptive=False)
        progress.start("training adv on 8 images")
        progress.start("fast: no")
        progress.close()
    assert lines[:2] == ["training adv on 8 images", "fast: no"]
    assert "0/4" in lines[2]


@pytest.mark.slow
def test_training_on_a_terminal_says_first_what_it_does_and_shows_its_closing_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "--limit 8 --epochs 1 --batch-size 4 --width 1 --steps 1 --warmup-epochs 0 --eval-steps 1 --device cpu"
    with terminal(monkeypatch) as lines:
        assert train([*words.split(), "--no-tensorboard", "--out", str(tmp_path / "run")]) == 0
    assert lines[0].startswith("training iaat on 8 images of digits")
    assert lines[1].startswith("epoch 1/1: 100%")
    assert lines[2].startswith("closing evaluation: 100%")


def test_lines_of_epochs_have_the_time_to_go(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(steps=30, done=10, epochs=3, adaptive=False)
    row = {"epoch": 2, "train_loss": 0.5, "test_accuracy": 0.25, "seconds": 40.0}
    for _ in range(10):
        clock[0] += 4.5
        progress.step(1)
        progress.values(loss=0.5, eps=None)
    progress.epoch(row)
    # Ten steps of this process in 45 s, and as many to go.
    expected = "epoch 2/3: loss 0.5000, test accuracy 25.00%, 40.0 s, 00:45 to go\n"
    assert capsys.readouterr() == (expected, "")


def test_a_long_epoch_has_a_line_a_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(steps=10, done=0, epochs=1, adaptive=True)
    for _ in range(5):
        clock[0] += 25
        progress.step(0)
        progress.values(loss=2.0, eps=8 / 255)
    expected = "epoch 1/1: step 3 of 10, loss 2.0000, mean eps 8.00/255, 02:55 to go\n"
    assert capsys.readouterr() == (expected, "")


def test_the_first_ctrl_c_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals(patient=True, answer="stopping after this step") as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert capfd.readouterr().err == "stopping after this step\n"
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""
