"""Training on real ImageNet images: random targets, a lower bound, files decoded by workers; resumed and evaluated."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast.data import UnreadableImage
from iaat_fast.evaluate.cli import main as evaluate
from iaat_fast.train import TrainConfig, fit, override, preset
from iaat_fast.train.cli import main as train
from iaat_fast.train.step import TrainingStep
from tests.forked import Forked, wait_until

LOWER_BOUND = 4 / 255


def slim(images: Path, out: Path, **data: Any) -> TrainConfig:
    """The ResNet-50 preset, slim and short: 12 images, 3 steps an epoch, one epoch of warm-up, fp32."""
    return preset(
        "imagenet-resnet50",
        data={"path": str(images), "workers": 0, "limit": 12, **data},
        model={"name": "imagenet-resnet18", "width": 4},
        attack={"steps": 2, "precision": "fp32"},
        epsilon={"warmup_epochs": 1, "selection_steps": 1},
        optim={"epochs": 2, "batch_size": 4, "lr_reference_batch": 2, "lr_warmup_epochs": 1},
        evaluation={"steps": 2, "batch_size": 12},
        run={"out": str(out), "device": "cpu", "tensorboard": False, "checkpoint_steps": 1},
    )


class Killed(BaseException):
    pass


def test_imagenette_trains_resumes_bit_by_bit_and_is_evaluated(
    imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def config(out: str, **data: Any) -> TrainConfig:
        return slim(imagenette, tmp_path / out, limit=8, **data)

    whole = fit(config("whole"), quiet=True)
    assert len(whole.epsilon) == 8
    # Visited once with eps_w = 16/255, then moved by at most gamma * beta.
    assert (whole.epsilon - 16 / 255).abs().max() <= 0.4 / 255 + 1e-6
    assert whole.epsilon.min() >= LOWER_BOUND
    # The first epoch rises from 0.1, by halves, to the scaled rate of 0.2, which the second keeps.
    assert [row["lr"] for row in whole.metrics] == pytest.approx([0.1 + 0.1 / 2, 0.2])

    call, steps = TrainingStep.__call__, 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        return call(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", dies)
        with pytest.raises(Killed):
            fit(config("killed"), quiet=True)
    # In other processes, which changes no bit.
    resumed = fit(config("killed", workers=1), resume=True, quiet=True)
    assert torch.equal(resumed.epsilon, whole.epsilon)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)

    record = tmp_path / "record.json"
    arguments = [str(tmp_path / "killed"), "--device", "cpu", "--steps", "2", "--restarts", "1"]
    assert evaluate([*arguments, "--json", str(record)]) == 0, capsys.readouterr().err
    measured = json.loads(record.read_text())
    assert measured["data"]["samples"] == 8
    natural, attack = measured["measurements"]
    assert natural["accuracy"] == resumed.metrics[-1]["test_accuracy"]
    assert attack["targeted"] == "random", "as the preset evaluates"


@pytest.mark.slow
def test_a_run_is_evaluated_by_a_suite_and_on_its_own_corruptions(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from iaat_fast.evaluate.corruptions import MAIN
    from iaat_fast.evaluate.suites import SUITES

    config = override(slim(image_folder, tmp_path / "run", limit=4), {"optim": {"epochs": 1}})
    run = fit(config, quiet=True).folder.path
    for name in MAIN:
        for severity in range(1, 6):
            shutil.copytree(image_folder / "val", tmp_path / "ImageNet-C" / name / str(severity))
    quick = dataclasses.replace(SUITES["imagenet"], attacks=((2, 1),), eps=(4 / 255,))
    monkeypatch.setitem(SUITES, "imagenet", quick)
    record = tmp_path / "record.json"
    arguments = [
        "--suite",
        "imagenet",
        "--parts",
        "natural",
        "pgd",
        "corruptions",
        "--device",
        "cpu",
        "--limit",
        "2",
    ]
    corrupted = ["--corruptions", str(tmp_path / "ImageNet-C")]
    status = evaluate([str(run), *arguments, *corrupted, "--json", str(record)])
    assert status == 0, capsys.readouterr().err
    rows = {row["key"]: row for row in json.loads(record.read_text())["measurements"]}
    assert rows["pgd2x1-eps4"]["targeted"] == "random"
    assert {"natural", "corruptions"} <= set(rows)


@pytest.mark.slow
def test_radii_do_not_fall_below_the_lower_bound(image_folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "epsilon": {"warmup_epochs": 0, "selection_steps": 1, "beta": 1.0},
        "optim": {
            "epochs": 1,
            "batch_size": 8,
            "lr_reference_batch": None,
            "lr_warmup_epochs": 0,
        },
    }
    fit(override(slim(image_folder, tmp_path / "run"), changes), quiet=True)
    eps = torch.from_numpy(np.load(tmp_path / "run/epsilon/epoch-0001.npy"))
    # From 0, a sample that withstands goes to gamma, which is the bound, and one that falls back to 0.
    assert torch.equal(eps, torch.full((12,), LOWER_BOUND))


@pytest.mark.slow
def test_a_bad_image_stops_with_a_checkpoint_and_the_run_goes_on_without_it(
    image_folder: Path, tmp_path: Path
) -> None:
    bad = image_folder / "train/b/1.JPEG"
    good = tmp_path / "good.JPEG"
    shutil.copy(bad, good)
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(UnreadableImage, match=r"b/1\.JPEG.*checkpoint saved.*--on-bad-image skip"):
        fit(slim(image_folder, tmp_path / "run"), quiet=True)
    result = fit(slim(image_folder, tmp_path / "run", on_bad_image="skip"), resume=True, quiet=True)
    assert result.epsilon[4] == 0, "sample 4 was never visited"
    assert (result.epsilon[torch.arange(12) != 4] > 0).all()
    assert 0 < result.metrics[-1]["train_loss"] < 20


def run_cli(*arguments: str) -> int:
    return train(["imagenet-resnet50", *arguments])


def test_bad_folders_end_the_command_with_one_line(
    image_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    shutil.rmtree(image_folder / "val/b")
    for arguments, message in (
        ([], "--data"),
        (["--data", str(image_folder)], "train/ has class folders that val/ lacks (b)"),
        (["--data", str(image_folder / "train")], "train/train: missing"),
        (["--protocol", "released"], "protocol: 'released', expected 'paper'"),
    ):
        assert run_cli(*arguments, *out) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_ends_the_step_and_saves(
    image_folder: Path, tmp_path: Path, signum: int, status: int
) -> None:
    out = tmp_path / "run"
    command = f"""imagenet-resnet50 --model imagenet-resnet18 --width 4 --workers 2
        --batch-size 4 --steps 2 --selection-steps 1 --precision fp32 --epochs 1000 --device cpu
        --checkpoint-steps 1 --no-tensorboard --data {image_folder} --out {out}"""
    run = Forked("iaat_fast.train", *command.split(), group=True)
    try:
        wait_until((out / "checkpoint.pt").is_file, run)
        os.killpg(run.pid, signum)
        _, error = run.communicate()
    finally:
        run.kill()
    assert run.returncode == status, error
    answer, saved = error.splitlines()
    assert answer.startswith("stopping after this step")
    assert "checkpoint saved; resume with" in saved
