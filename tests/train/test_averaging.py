"""The average of the weights: its arithmetic, its place in checkpoints, and that it is what counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.data import ImageData
from iaat_fast.evaluate import accuracy
from iaat_fast.evaluate.cli import main as evaluate
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import fit, preset
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.finish import evaluate_run
from iaat_fast.train.optim import count_update, make_average, update_average


def test_weights_and_statistics_are_averaged_and_counters_copied(
    tiny_model: Callable[[], nn.Module],
) -> None:
    model = tiny_model()
    average = make_average(model, 0.75)
    assert average is not None
    assert not any(p.requires_grad for p in average.parameters())
    expected: dict[str, torch.Tensor] = {}
    for step in range(3):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(step + 1)
        update_average(average, model)
        count_update(average, model)
        for name, live in model.state_dict().items():
            if step == 0 or not live.is_floating_point():
                expected[name] = live.clone()
            else:
                expected[name] = 0.75 * expected[name] + 0.25 * live
    for name, value in average.module.state_dict().items():
        # lerp rounds its one product and sum otherwise than the two products and the sum above.
        torch.testing.assert_close(value, expected[name], rtol=3e-7, atol=1e-6)
    assert average.module[1].num_batches_tracked == model[1].num_batches_tracked == 6


def test_without_a_decay_there_is_none(
    tiny_model: Callable[[], nn.Module],
    tiny_config: Callable[..., TrainConfig],
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    assert make_average(tiny_model(), 0.0) is None
    model = tiny_model()
    config = tiny_config(tmp_path / "run", method="clean", optim={"epochs": 1})
    result = fit(config, model=model, data=tiny_data, quiet=True)
    assert result.evaluated is result.model is model
    assert "ema" not in result.folder.checkpoint()


def test_the_average_is_evaluated_and_leaves_training_alone(
    tiny_model: Callable[[], nn.Module],
    tiny_config: Callable[..., TrainConfig],
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    def run(name: str, decay: float) -> Any:
        config = tiny_config(tmp_path / name, method="adv", optim={"ema_decay": decay})
        return fit(config, model=tiny_model(), data=tiny_data, quiet=True)

    plain, averaged = run("plain", 0.0), run("averaged", 0.9)
    one, other = plain.folder.checkpoint(), averaged.folder.checkpoint()
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
        assert name == "1.num_batches_tracked" or not torch.equal(value, other["ema"][name]), name
        assert torch.equal(averaged.evaluated.state_dict()[name], other["ema"][name])
    counted = accuracy(averaged.evaluated, tiny_data.test)
    assert averaged.metrics[-1]["test_accuracy"] == counted
    assert evaluate_run(averaged)["natural_accuracy"] == counted
    assert averaged.folder.results()["ema"] is True


def test_evaluate_takes_the_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = preset(
        "digits",
        method="clean",
        data={"limit": 100},
        model={"width": 4},
        optim={"epochs": 8, "batch_size": 20, "ema_decay": 0.5},
        run={"out": str(tmp_path / "run"), "device": "cpu", "tensorboard": False},
    )
    result = fit(config, quiet=True)
    # Told apart for certain: the live weights are made to see nothing, and find one class in ten.
    checkpoint = result.folder.checkpoint()
    expected = accuracy(result.evaluated, result.data.test)
    assert expected > 0.3
    for value in checkpoint["model"].values():
        value.zero_()
    result.folder.save_checkpoint(checkpoint)
    flags = ["--steps", "1", "--restarts", "1", "--device", "cpu"]
    file = tmp_path / "out.json"
    assert evaluate([str(tmp_path / "run"), *flags, "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["measurements"][0]["accuracy"] == expected
    assert RunFolder(tmp_path / "run").checkpoint()["ema_updates"] == 8 * 5


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match=r"optim\.ema_decay: .*, expected a number in \[0, 1\)"):
        preset("digits", optim={"ema_decay": decay})
