"""`--resume` with more epochs: the run that had ended continues, to the bits of a longer one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.run_folder import RunFolder
from iaat_fast.train import override
from iaat_fast.train.cli import main
from tests.train.same_run import Fit, assert_same_run


def test_a_finished_run_extended_is_a_longer_run(
    tmp_path: Path, tiny_config: Any, tiny_fit: Fit
) -> None:
    """The decay at epoch 2 stays where it was; evaluations of the shorter run are kept under another name."""
    parts = {"optim": {"epochs": 2, "decay_epochs": (1, 2)}}
    config = tiny_config(tmp_path / "run", **parts)
    folder = tiny_fit(config).folder
    folder.save_results({"natural_accuracy": 0.5})
    folder.evaluation_dir.mkdir()
    (folder.evaluation_dir / "digits.json").write_text("{}")
    longer = override(config, {"optim": {"epochs": 4}})
    result = tiny_fit(longer, resume=True)
    straight = tiny_fit(override(longer, {"run": {"out": str(tmp_path / "straight")}}))
    assert_same_run(folder, straight.folder)
    assert [row["lr"] for row in result.metrics] == pytest.approx([0.05, 0.005, 0.0005, 0.0005])
    assert folder.config()["optim"]["epochs"] == 4
    assert not folder.results_path.exists()
    assert [path.name for path in tmp_path.glob("run/evaluation*/*")] == ["digits.json"]
    assert (tmp_path / "run" / "evaluation-epoch-0002").is_dir()


def test_an_extension_that_is_stopped_goes_on_as_any_run(
    tmp_path: Path, tiny_config: Any, tiny_fit: Fit
) -> None:
    config = tiny_config(tmp_path / "run", optim={"epochs": 1})
    folder = tiny_fit(config).folder

    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    longer = override(config, {"optim": {"epochs": 3}})
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(longer, resume=True, on_epoch=stop)
    assert len(tiny_fit(longer, resume=True).metrics) == 3
    assert_same_run(folder, tiny_fit(tiny_config(tmp_path / "straight")).folder)
    with pytest.raises(ValueError, match=r"optim.epochs \(3 there, 2 given\)"):
        tiny_fit(override(config, {"optim": {"epochs": 2}}), resume=True)


def test_on_the_command_line_the_closing_table_is_of_the_longer_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    small = ["--limit", "64", "--width", "4", "--method", "clean", "--eval-restarts", "1"]
    few = ["--no-tensorboard", "--device", "cpu", "--eval-steps", "1", "--decay-epochs", "1"]
    assert main([*small, *few, "--epochs", "2", "--out", out]) == 0
    capsys.readouterr()
    assert main(["--resume", "--epochs", "3", "--out", out]) == 0
    folder = RunFolder(out)
    assert len(folder.metrics()) == 3
    results = json.loads(folder.results_path.read_text())
    assert f"{results['natural_accuracy']:.2%}" in capsys.readouterr().out
    assert results["natural_accuracy"] == folder.metrics()[-1]["test_accuracy"]
    assert main(["--resume", "--epochs", "2", "--out", out]) == 2
    assert "--epochs (3 there, 2 given)" in capsys.readouterr().err


def test_a_rate_that_was_planned_over_fewer_epochs_cannot_be_extended(
    tmp_path: Path, tiny_config: Any, tiny_fit: Fit
) -> None:
    config = tiny_config(tmp_path / "run", optim={"epochs": 1, "lr_schedule": "cosine"})
    tiny_fit(config)
    with pytest.raises(ValueError, match=r"optim.epochs \(1 there, 2 given\)"):
        tiny_fit(override(config, {"optim": {"epochs": 2}}), resume=True)
