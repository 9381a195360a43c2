"""`fit` with a module and images from Python: the run folder, resuming, and what stops it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iaat_fast import ops
from iaat_fast.data import ImageData, Split, epoch_order
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import FitResult, Interrupted, TrainConfig, fit
from iaat_fast.train.schedule import learning_rate
from iaat_fast.train.seeds import Stream, step_seed

Fit = Callable[..., FitResult]


@pytest.fixture
def tiny_fit(tiny_model: Callable[[], nn.Module], tiny_data: ImageData) -> Fit:
    def call(config: TrainConfig, **keywords: Any) -> FitResult:
        return fit(config, model=tiny_model(), data=tiny_data, quiet=True, **keywords)

    return call


def bits(folder: RunFolder) -> dict[str, Tensor]:
    """The weights, buffers and radii of the last checkpoint."""
    state = folder.checkpoint()
    return {**state["model"], "epsilon": state["epsilon"]}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    first, second = bits(one), bits(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    rows = [[{**row, "seconds": None} for row in run.metrics()] for run in (one, other)]
    assert rows[0] == rows[1]
    assert list(one.epsilon_snapshots()) == list(other.epsilon_snapshots())


@pytest.mark.parametrize("method", ["clean", "adv", "iaat"])
def test_a_run_trains_and_leaves_its_folder(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path, method: str
) -> None:
    config = tiny_config(tmp_path / "run", method=method, run={"tensorboard": True})
    result = tiny_fit(config)
    folder = RunFolder(tmp_path / "run")
    assert [row["epoch"] for row in result.metrics] == [1, 2, 3]
    assert [row["step"] for row in result.metrics] == [5, 10, 15]
    assert folder.metrics() == result.metrics
    checkpoint = folder.checkpoint()
    assert (checkpoint["epoch"], checkpoint["step"]) == (3, 15)
    assert checkpoint["config"] == folder.config() == result.config.to_dict()
    assert checkpoint["epsilon"].dtype == torch.float32
    assert torch.equal(checkpoint["epsilon"], result.epsilon)
    assert result.epsilon.shape == (24,)
    assert torch.equal(checkpoint["model"]["5.weight"], result.model[5].weight)
    assert folder.env()["packages"]["torch"]
    assert len(list(folder.tensorboard_dir.glob("events.out.tfevents.*"))) == 1


def test_what_a_row_of_metrics_holds_under_each_method(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    rows = {
        m: tiny_fit(tiny_config(tmp_path / m, method=m)).metrics for m in ("clean", "adv", "iaat")
    }
    assert rows["clean"][0]["train_robust_accuracy"] is None
    assert rows["adv"][0]["train_clean_accuracy"] is None
    for row in rows["iaat"]:
        assert 0 <= row["train_robust_accuracy"] <= row["train_clean_accuracy"] <= 1
    assert rows["clean"][-1]["train_loss"] < rows["clean"][0]["train_loss"]
    assert {row["eps_max"] for row in rows["clean"]} == {0.0}
    assert [row["eps_mean"] for row in rows["adv"]] == pytest.approx([0.3] * 3)
    assert rows["iaat"][0]["eps_mean"] == pytest.approx(0.3)
    assert rows["iaat"][2]["eps_std"] > 0


def test_radii_are_kept_at_the_epochs_asked_for_and_the_last(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = tiny_fit(tiny_config(tmp_path / "run", run={"snapshot_epochs": 2}))
    snapshots = result.folder.epsilon_snapshots()
    assert list(snapshots) == [2, 3]
    assert np.array_equal(np.load(snapshots[3]), result.epsilon.numpy())


def test_tensorboard_shows_the_metrics_and_the_histogram(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = tiny_fit(tiny_config(tmp_path / "run", run={"tensorboard": True}))
    events = EventAccumulator(str(result.folder.tensorboard_dir)).Reload()
    assert {"train/loss", "test/accuracy", "eps/mean", "run/lr"} <= set(events.Tags()["scalars"])
    assert events.Tags()["histograms"] == ["eps/histogram"]
    mean = events.Scalars("eps/mean")
    assert [event.step for event in mean] == [5, 10, 15]
    assert mean[0].value == pytest.approx(0.3 * 255)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    one = tiny_fit(tiny_config(tmp_path / "one"))
    torch.rand(3)  # the caller's random state is no input
    two = tiny_fit(tiny_config(tmp_path / "two"))
    three = tiny_fit(tiny_config(tmp_path / "three", run={"seed": 1}))
    assert_same_run(one.folder, two.folder)
    assert not torch.equal(bits(one.folder)["5.weight"], bits(three.folder)["5.weight"])


def test_the_callers_random_state_and_the_given_module_are_handled_as_documented(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    model, rows = tiny_model(), []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = fit(
        tiny_config(tmp_path / "run"), model=model, data=tiny_data, on_epoch=rows.append, quiet=True
    )
    assert torch.equal(before, torch.get_rng_state())
    assert result.model is model
    assert rows == result.metrics


def test_a_quiet_run_prints_nothing_and_another_one_line_per_epoch(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_fit(tiny_config(tmp_path / "one"))
    assert capsys.readouterr() == ("", "")
    fit(tiny_config(tmp_path / "two"), model=tiny_model(), data=tiny_data)
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.partition(":")[0] for line in out.splitlines()[1:]] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]


def test_the_learning_rate_decays_at_the_epochs_of_the_table(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", optim={"decay_epochs": (1, 2), "decay_factor": 0.1})
    rates = [learning_rate(config.optim, epoch) for epoch in range(3)]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])
    assert [row["lr"] for row in tiny_fit(config).metrics] == rates


def test_an_existing_run_is_refused_without_resume_or_overwrite(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run")
    before = bits(tiny_fit(config).folder)
    with pytest.raises(FileExistsError, match="--resume"):
        tiny_fit(config)
    with pytest.raises(ValueError, match="exclude each other"):
        tiny_fit(config, resume=True, overwrite=True)
    assert torch.equal(bits(RunFolder(tmp_path / "run"))["epsilon"], before["epsilon"])


def test_overwrite_replaces_a_run(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    tiny_fit(tiny_config(tmp_path / "run", optim={"epochs": 2}))
    result = tiny_fit(tiny_config(tmp_path / "run", method="adv"), overwrite=True)
    assert len(result.metrics) == 3
    assert result.folder.config()["method"] == "adv"
    assert result.folder.epsilon_snapshots() == {}


@pytest.mark.parametrize("keyword", ["resume", "overwrite"])
def test_a_folder_that_holds_no_run_is_never_touched(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path, keyword: str
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="no run folder"):
        tiny_fit(tiny_config(tmp_path), **{keyword: True})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_another_configuration_names_fields_and_both_values(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    tiny_fit(tiny_config(tmp_path / "run"))
    other = tiny_config(tmp_path / "run", optim={"lr": 0.2})
    with pytest.raises(ValueError, match=r"optim\.lr \(0\.05 there, 0\.2 given\)"):
        tiny_fit(other, resume=True)


def test_a_finished_run_resumed_stays_as_it_is(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run")
    before = bits(tiny_fit(config).folder)
    result = tiny_fit(config, resume=True)
    assert len(result.metrics) == 3
    assert torch.equal(before["5.weight"], result.model[5].weight)
    assert torch.equal(before["epsilon"], result.epsilon)


def test_without_a_folder_each_run_gets_a_fresh_one(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    one = tiny_fit(tiny_config(optim={"epochs": 1}))
    two = tiny_fit(tiny_config(optim={"epochs": 1}))
    assert one.folder.path != two.folder.path
    assert one.folder.path.parent == Path("runs")
    assert one.folder.path.name.startswith("digits-iaat-")
    with pytest.raises(ValueError, match="--resume needs"):
        tiny_fit(tiny_config(), resume=True)


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


@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_at_any_write_and_resumed_ends_with_the_same_bits(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    run = {"checkpoint_steps": 2}
    changes: dict[str, Any] = {"optim": {"epochs": 2, "batch_size": 8}, "run": run}
    with monkeypatch.context() as patch:
        writes = kill_at_write(patch, 0, after=after)
        reference = tiny_fit(tiny_config(tmp_path / "reference", **changes)).folder
    assert writes() > 20
    for number in range(1, writes() + 1):
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


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [1, 7, 10, 15])
def test_a_signal_finishes_the_step_saves_and_the_run_can_go_on(
    tiny_fit: Fit,
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    status: int,
    step: int,
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
    from iaat_fast.train.stopping import StopSignals

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
    from iaat_fast.train.stopping import StopSignals

    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with StopSignals(patient=True) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGINT
    assert statuses == []


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
    from iaat_fast.train import checkpointing

    # Each look at the clock is a minute later.
    minutes = iter(range(10_000))
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: 60.0 * next(minutes))
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
) -> None:
    config = tiny_config(tmp_path / "run")
    reference = tiny_fit(tiny_config(tmp_path / "reference")).folder
    folder = tiny_fit(config).folder
    damage(folder.checkpoint_path)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt: .*checkpoint-previous\.pt, step 10"):
        tiny_fit(config, resume=True)
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


def test_a_module_that_does_not_fit_the_images_is_refused_before_a_folder_is_made(
    tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    wrong_shape = nn.Sequential(nn.Flatten(), nn.Linear(35, 3))
    few_classes = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for model, message in ((wrong_shape, "does not take"), (few_classes, "classes > 2")):
        with pytest.raises(ValueError, match=message):
            fit(tiny_config(tmp_path / "run"), model=model, data=tiny_data, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_asks_for_its_module_again(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = tiny_fit(tiny_config(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"fit\(data=...\)"):
        fit(result.config, resume=True, quiet=True)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:x", "meta"])
def test_a_device_that_is_not_there_is_refused(
    tiny_fit: Fit, tiny_config: Callable[..., TrainConfig], tmp_path: Path, device: str
) -> None:
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        tiny_fit(tiny_config(tmp_path / "run", run={"device": device}))
    assert not (tmp_path / "run").exists()


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


def test_augmented_images_are_those_that_the_op_draws_for_the_step(
    tiny_config: Callable[..., TrainConfig], tiny_data: ImageData, tmp_path: Path
) -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(36, 3)
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen.append(x.detach().clone())
            return self.linear(x.flatten(1))

    # Images as a caller may have made them, stored channels first.
    stored = tiny_data.train.images.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    data = replace(tiny_data, train=Split(stored, tiny_data.train.labels))
    config = tiny_config(tmp_path / "run", method="clean", data={"augment": True}, run={"seed": 3})
    model = Recorder()
    fit(config, model=model, data=data, quiet=True)
    batches = [part for epoch in range(3) for part in epoch_order(24, seed=3, epoch=epoch).split(5)]
    assert len(model.seen) == len(batches)
    for step, (x, index) in enumerate(zip(model.seen, batches, strict=True)):
        seed = step_seed(3, step, Stream.AUGMENT)
        assert torch.equal(x, ops.random_crop_flip(tiny_data.train.images, index, seed))


def test_images_of_one_label_only_still_train(
    tiny_config: Callable[..., TrainConfig], tiny_model: Callable[[], nn.Module], tmp_path: Path
) -> None:
    split = Split(
        images=torch.zeros(4, 6, 6, 1, dtype=torch.uint8), labels=torch.zeros(4, dtype=torch.int64)
    )
    data = ImageData(name="one", train=split, test=split, num_classes=1)
    result = fit(tiny_config(tmp_path / "run"), model=tiny_model(), data=data, quiet=True)
    assert len(result.metrics) == 3
