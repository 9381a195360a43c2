"""What stops `fit`, and how it is resumed: kills, signals, full disks, losses and checkpoints gone bad."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.data import ImageData
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import Interrupted, TrainConfig, fit
from tests.train.same_run import Fit, assert_same_run, bits


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_at_write(
    monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool
) -> Callable[[], int]:
    """Raise Killed at the write with this number, before or after it took effect.

    Every whole file goes through `os.replace` and every metrics row is followed by `os.fsync`.
    """
    count, lock = 0, threading.Lock()  # checkpoints are written by a thread

    def wrap(call: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any) -> None:
            nonlocal count
            with lock:
                count += 1
                mine = count
            if mine == number and not after:
                raise Killed
            call(*args)
            if mine == number:
                raise Killed

        return counted

    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(os, "fsync", wrap(os.fsync))
    return lambda: count


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_at_any_write_and_resumed_ends_with_the_same_bits(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    """Between one write and the next nothing changes on disk: before every other write and after it is at any."""
    run = {"checkpoint_steps": 1}
    changes: dict[str, Any] = {
        "attack": {"steps": 1},
        "optim": {"epochs": 2, "batch_size": 12},
        "run": run,
    }
    with monkeypatch.context() as patch:
        writes = kill_at_write(patch, 0, after=after)
        reference = tiny_fit(tiny_config(tmp_path / "reference", **changes)).folder
    assert writes() > 20
    for number in range(1, writes() + 1, 2):
        config = tiny_config(tmp_path / f"killed-{number}", **changes)
        with monkeypatch.context() as patch:
            kill_at_write(patch, number, after=after)
            with pytest.raises(Killed):
                tiny_fit(config)
        assert_same_run(tiny_fit(config, resume=True).folder, reference)


def stop_at(step: int, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send `signum` to this process while the given step (from 1) is under way."""
    from iaat_fast.train.step import TrainingStep

    original, calls = TrainingStep.__call__, iter(range(1, 1000))

    def call(self: TrainingStep, *args: Any, **keywords: Any) -> Tensor:
        if next(calls) == step:
            os.kill(os.getpid(), signum)
        return original(self, *args, **keywords)

    monkeypatch.setattr(TrainingStep, "__call__", call)


@pytest.mark.parametrize(
    ("step", "signum", "status"),
    [
        (1, signal.SIGINT, 130),
        (7, signal.SIGTERM, 143),
        (10, signal.SIGINT, 130),
        (15, signal.SIGTERM, 143),
    ],
)
def test_a_signal_finishes_the_step_saves_and_the_run_can_go_on(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    signum: int,
    status: int,
) -> None:
    reference = tiny_fit(tiny_config(tmp_path / "reference")).folder
    config = tiny_config(tmp_path / "run")
    handler = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        stop_at(step, signum, patch)
        with pytest.raises(Interrupted, match="--resume --out") as stop:
            tiny_fit(config)
    assert stop.value.status == status
    assert signal.getsignal(signum) == handler
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint()["step"] == step
    assert_same_run(tiny_fit(config, resume=True).folder, reference)


def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from iaat_fast.train.signals import StopSignals

    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert statuses == []
        os.kill(os.getpid(), signal.SIGINT)
    assert statuses == [130]


def test_with_several_ranks_a_second_signal_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iaat_fast.train.signals import StopSignals

    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with StopSignals(patient=True) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGINT
    assert statuses == []


def test_sigint_stays_ignored_where_it_was_and_sigterm_is_heeded() -> None:
    """As in a background job of a shell, whose Ctrl-C is not meant for it."""
    from iaat_fast.train.signals import StopSignals

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_resuming_records_where_and_hides_the_events_beyond(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tmp_path / "run", run={"tensorboard": True})
    folder = RunFolder(tmp_path / "run")

    save = RunFolder.save_checkpoint

    def killed_at_10(self: RunFolder, state: dict[str, Any]) -> None:
        if state["step"] == 10:
            raise Killed
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", killed_at_10)
        with pytest.raises(Killed):
            tiny_fit(config)
    assert [row["step"] for row in folder.metrics()] == [5, 10]
    # TensorBoard reads the files of one second in the order of a number's text, the tenth before the ninth.
    time.sleep(1 - time.time() % 1)
    tiny_fit(config, resume=True)
    assert [row["step"] for row in folder.metrics()] == [5, 10, 15]
    assert folder.env()["resumed"][0]["step"] == 5
    events = EventAccumulator(str(folder.tensorboard_dir)).Reload()
    assert [event.step for event in events.Scalars("eps/mean")] == [5, 10, 15]


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, original = RunFolder(tmp_path / "run"), os.fsync

    def full(handle: int) -> None:
        if folder.checkpoint_path.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    config = tiny_config(tmp_path / "run", run={"checkpoint_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            tiny_fit(config)
    assert caught.value.filename is not None
    assert folder.checkpoint()["step"] == 2
    assert not list(folder.path.glob(".*"))
    reference = tiny_fit(tiny_config(tmp_path / "reference")).folder
    assert_same_run(tiny_fit(config, resume=True).folder, reference)


def test_checkpoints_come_by_the_clock_too(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from iaat_fast.train import checkpoint

    # Each look at the clock is a minute later.
    minutes = iter(range(10_000))
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 60.0 * next(minutes))
    steps: list[int] = []
    save = RunFolder.save_checkpoint
    monkeypatch.setattr(
        RunFolder,
        "save_checkpoint",
        lambda folder, state: (steps.append(state["step"]), save(folder, state)),
    )
    tiny_fit(tiny_config(tmp_path / "never", run={"checkpoint_minutes": 0}))
    assert steps == [5, 10, 15]
    steps.clear()
    tiny_fit(tiny_config(tmp_path / "run", run={"checkpoint_minutes": 2}))
    assert steps == [2, 4, 5, 7, 9, 10, 12, 14, 15]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    model = tiny_model()

    def poison(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            model[5].weight.data.mul_(float("nan"))

    config = tiny_config(tmp_path / "run", method="clean", run={"checkpoint_steps": 1})
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 11 .*checkpoint\.pt"):
        fit(config, model=model, data=tiny_data, on_epoch=poison, quiet=True)
    state = RunFolder(tmp_path / "run").checkpoint()
    assert state["step"] == 10
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"model": {}}, path),
        lambda path: torch.save({**torch.load(path), "epsilon": torch.zeros(24)}, path),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(tmp_path / "run")
    folder = tiny_fit(config).folder
    reference = RunFolder(shutil.copytree(folder.path, tmp_path / "reference"))
    damage(folder.checkpoint_path)
    caplog.clear()
    tiny_fit(config, resume=True)
    said = [message for message in caplog.messages if "checkpoint" in message]
    assert len(said) == 1
    assert re.match(r".*checkpoint\.pt: .*checkpoint-previous\.pt, step 10$", said[0])
    assert_same_run(folder, reference)


def test_where_every_checkpoint_is_damaged_the_run_is_refused_and_stays_as_it_is(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run")
    folder = tiny_fit(config).folder
    for path in (folder.checkpoint_path, folder.previous_path):
        path.write_bytes(b"")
    rows = folder.metrics()
    with pytest.raises(ValueError, match=r"checkpoint\.pt.*checkpoint-previous\.pt"):
        tiny_fit(config, resume=True)
    assert folder.metrics() == rows


def test_a_checkpoint_of_another_method_is_refused(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    other = tiny_fit(tiny_config(tmp_path / "adv", method="adv")).folder
    folder = tiny_fit(tiny_config(tmp_path / "run")).folder
    folder.checkpoint_path.write_bytes(other.checkpoint_path.read_bytes())
    message = r"checkpoint\.pt: .* another configuration: method \('adv' there, 'iaat' given\)"
    with pytest.raises(ValueError, match=message):
        tiny_fit(tiny_config(tmp_path / "run"), resume=True)


def test_a_checkpoint_of_another_network_is_refused(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run")
    tiny_fit(config)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match="does not fit"):
        fit(config, model=other, data=tiny_data, resume=True, quiet=True)


def test_augmentation_is_resumed_bit_by_bit(
    tiny_config: Callable[..., TrainConfig],
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def config(name: str) -> TrainConfig:
        return tiny_config(tmp_path / name, method="clean", data={"augment": True})

    reference = fit(config("reference"), model=model(), data=tiny_data, quiet=True).folder
    plain = tiny_config(tmp_path / "plain", method="clean")
    unaugmented = fit(plain, model=model(), data=tiny_data, quiet=True).folder
    assert not torch.equal(bits(reference)["1.weight"], bits(unaugmented)["1.weight"])
    with monkeypatch.context() as patch:
        stop_at(7, signal.SIGINT, patch)
        with pytest.raises(Interrupted):
            fit(config("run"), model=model(), data=tiny_data, quiet=True)
    resumed = fit(config("run"), model=model(), data=tiny_data, resume=True, quiet=True)
    assert_same_run(resumed.folder, reference)
