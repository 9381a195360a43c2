"""`python -m iaat_fast.plan`: table, JSON, and one line for what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from iaat_fast.plan.cli import main
from iaat_fast.plan.cost import images_of
from iaat_fast.plan.estimate import phases
from iaat_fast.train.methods.passes import Fooled
from iaat_fast.train.presets import PRESETS, preset


def plan(*words: object) -> int:
    return main([str(word) for word in words])


def test_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "plan.json"
    assert plan("digits", "--gpus", 1, 8, "--gpu", "v100", "--json", out) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out.read_text())
    assert [each["gpus"] for each in found["plans"]] == [1, 8]
    for each in found["plans"]:
        for figure in each["figures"]:
            assert figure["source"] in ("given", "counted", "measured", "modelled")
    rows = [line for line in shown.splitlines() if line.startswith("│   ")]
    names = {(f["group"], f["name"]) for each in found["plans"] for f in each["figures"]}
    assert len(rows) == len(names)
    for row in rows:
        assert row.split("│")[-2].strip() in ("given", "counted", "measured", "modelled")
    assert "samples fooled at prev + gamma: 0.5 (assumed)" in shown


def test_every_plan_says_what_is_replayed_from_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("digits", "--gpus", 1, 8, "--width", 4) == 0
    text = capsys.readouterr().out
    assert "1 GPU, steps of phase adaptive: replayed from a graph" in text
    assert "8 GPUs, steps of phase adaptive: launched by the host" in text


def test_no_number_is_written_with_an_exponent(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("digits", "--gpus", 64, "--batch-per-gpu", 4096) == 0
    text = capsys.readouterr().out
    assert re.search(r"batch size +│ +262,100 │ images", text)
    assert not re.search(r"\de[+-]\d", text)


@pytest.mark.slow
def test_networks_with_batch_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("cifar10-resnet18", "--width", 2, "--gpus", 8) == 0
    assert "BatchNorm" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_images_and_phases(name: str) -> None:
    config = preset(name)
    assert images_of(config).samples > 1000
    assert sum(phases(config).values()) == config.optim.epochs


def test_the_strategy_is_that_of_the_hardware_planned(tmp_path: Path) -> None:
    """Of the preset: batched on GPUs, lazy on the CPU that is measured, where nothing is filled up."""
    out, found = tmp_path / "plan.json", []
    measured = ("--measure", "--device", "cpu", "--fooled", 0.3)
    for words in ((), ("--strategy", "lazy", "--fooled", 0.3), measured):
        assert plan("digits", "--gpus", 1, "--width", 4, "--json", out, *words) == 0
        found.append(json.loads(out.read_text()))
    strategies = [each["config"]["epsilon"]["strategy"] for each in found]
    assert strategies == ["batched", "lazy", "lazy"]
    gradients = [
        figure["value"]
        for each in found
        for figure in each["plans"][0]["figures"]
        if (figure["group"], figure["name"]) == ("a step, adaptive", "gradient passes per image")
    ]
    padded = Fooled(once=0.3).padded(128).once
    assert gradients == pytest.approx([30, 10 * (2 + padded), 10 * (2 + 0.3)])


def test_measured_on_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert (
        plan("digits", "--measure", "--device", "cpu", "--gpus", 1, "--width", 4, "--json", out)
        == 0
    )
    (found,) = json.loads(out.read_text())["plans"]
    passes = [figure for figure in found["figures"] if figure["group"].startswith("a pass")]
    assert {figure["name"] for figure in passes} == {"forward", "gradient", "update"}
    assert all(figure["source"] == "measured" and figure["value"] > 0 for figure in passes)
    assert all("measured (" in source for source in found["sources"].values())


def test_the_share_of_fooled_samples_from_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"epoch": 1, "train_robust_accuracy": 0.2}, {"epoch": 2, "train_robust_accuracy": 0.7}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text("{}")
    assert plan("digits", "--run", tmp_path) == 0
    assert "samples fooled at prev + gamma: 0.3 (modelled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cifar10-resnet81",), "did you mean 'cifar10-resnet18'"),
        (("--gpu", "h10"), "; did you mean 'h100'"),
        (("--gpus", 0), "--gpus: 0, expected numbers of at least 1"),
        (("--gpus", 8, -1), "--gpus: 8 -1, expected numbers of at least 1"),
        (("--gpus", 3), "--gpus: 3 do not divide the batch of 128 images"),
        (("--batch-size", 100), "--gpus: 8 do not divide the batch of 100 images"),
        (("--batch-size", 0), "error: --batch-size: 0"),
        (("--batch-per-gpu", 0), "--batch-per-gpu: 0, expected at least 1"),
        (("--batch-per-gpu", 4, "--batch-size", 32), "expected one of them"),
        (("--fooled", 1.2), "--fooled: 1.2, expected a number in [0, 1]"),
        (("--share", 0), "--share: 0.0, expected a number in (0, 1]"),
        (("--between", 0), "--between: 0.0, expected a number > 0"),
        (("--latency", -1), "--latency: -1.0, expected a number >= 0"),
        (("--per-node", 0), "--per-node: 0, expected at least 1"),
        (("--epochs", 0), "error: --epochs: 0"),
        (("--measure", "--measure-batch", 0), "--measure-batch: 0, expected at least 1"),
        (("--results", "nowhere"), "--results nowhere: there is no such folder"),
        (("--json", "nowhere/plan.json"), "--json nowhere/plan.json: there is no folder nowhere"),
        (("--run", "nowhere"), "nowhere"),
        (("--gpuz", 8), "--gpuz: unknown flag"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(
    words: tuple[object, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m iaat_fast.plan: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())
