"""`--fast` and "auto": what the hardware decides, that flags win over it, and that a run stays what it began as."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.attacks import options
from iaat_fast.data import ImageData
from iaat_fast.run_folder import RunFolder
from iaat_fast.train import hardware
from iaat_fast.train.cli import main, parse
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.hardware import in_words, resolved
from iaat_fast.train.loop import fit
from iaat_fast.train.overrides import override
from iaat_fast.train.presets import preset
from iaat_fast.train.step import TrainingStep, make_memory
from tests.train.same_run import Fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FAST = {"fast": True}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], torch.device]:
    """Makes this machine one of another kind, as far as it is asked about."""

    def become(kind: str) -> torch.device:
        capability = {"h100": (9, 0), "a100": (8, 0), "t4": (7, 5)}.get(kind)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(options, "_cpu_multiplies_bf16", lambda: kind == "bf16 cpu")
        return CPU if capability is None else GPU

    return become


def chosen(config: TrainConfig) -> tuple[str, str, str, str]:
    return (
        config.attack.precision,
        config.attack.engine,
        config.optim.amp,
        config.epsilon.strategy,
    )


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        (
            "h100",
            ("bf16", "fast", "bf16", "batched"),
            "bf16 attacks, bf16 autocast, whole steps in graphs, batched candidates",
        ),
        (
            "a100",
            ("bf16", "fast", "bf16", "batched"),
            "bf16 attacks, bf16 autocast, whole steps in graphs, batched candidates",
        ),
        (
            "t4",
            ("fp16", "fast", "off", "batched"),
            "fp16 attacks, no autocast, whole steps in graphs, batched candidates",
        ),
        (
            "bf16 cpu",
            ("bf16", "fast", "off", "lazy"),
            "bf16 attacks, no autocast, lazy candidates",
        ),
        (
            "cpu",
            ("fp32", "fast", "off", "lazy"),
            "fp32 attacks on a folded copy, no autocast, lazy candidates",
        ),
    ],
)
def test_fast_takes_what_the_hardware_is_fast_in(
    on: Callable[[str], torch.device], kind: str, expected: tuple[str, ...], words: str
) -> None:
    device = on(kind)
    config = resolved(preset("cifar10-resnet18", run=FAST), device)
    assert chosen(config) == expected
    assert in_words(config, device) == words
    assert config.run.fast
    assert resolved(config, GPU if device == CPU else CPU) == config, "once resolved, it stays"
    clean = resolved(preset("cifar10-resnet18", method="clean", run=FAST), device)
    assert in_words(clean, device) in words
    on_four = in_words(config, device, ranks=4)
    assert on_four == words.replace("whole steps in graphs, ", "")
    eager = override(config, {"optim": {"graph": False}})
    assert in_words(eager, device) == on_four


@pytest.mark.parametrize("kind", ["h100", "t4", "bf16 cpu", "cpu"])
def test_without_fast_the_strategy_alone_follows_the_hardware(
    on: Callable[[str], torch.device], kind: str
) -> None:
    device = on(kind)
    strategy = "batched" if device == GPU else "lazy"
    for name in ("digits", "cifar10-resnet18", "imagenet-resnet50"):
        config = preset(name)
        assert config.epsilon.strategy == "auto"
        assert resolved(config, device) == override(config, {"epsilon": {"strategy": strategy}})


def test_the_final_attack_which_changes_the_result_is_left_alone(
    on: Callable[[str], torch.device],
) -> None:
    for final in ("exact", "reuse"):
        config = preset("digits", epsilon={"final": final}, run=FAST)
        assert resolved(config, on("h100")).epsilon.final == final


def test_batch_statistics_are_attacked_one_after_the_other_in_fp32(
    on: Callable[[str], torch.device],
) -> None:
    device = on("h100")
    released = resolved(preset("cifar10-resnet18", protocol="released", run=FAST), device)
    assert chosen(released) == ("fp32", "auto", "bf16", "sequential")
    config = resolved(preset("digits", attack={"bn": "train"}, run=FAST), device)
    assert chosen(config) == ("fp32", "auto", "bf16", "sequential")


GIVEN: list[tuple[str, dict[str, dict[str, Any]]]] = [
    ("--precision fp32", {"attack": {"precision": "fp32"}}),  # the preset's own value, but given
    ("--precision tf32 --engine auto", {"attack": {"precision": "tf32"}}),
    ("--amp off", {"optim": {"amp": "off"}}),
    ("--amp fp16 --strategy lazy", {"optim": {"amp": "fp16"}, "epsilon": {"strategy": "lazy"}}),
    ("--engine exact", {"attack": {"engine": "exact", "precision": "fp32"}}),
]


@pytest.mark.parametrize(("line", "expected"), GIVEN)
@pytest.mark.parametrize("first", [True, False])
def test_flags_win_over_fast_wherever_they_stand(
    on: Callable[[str], torch.device],
    line: str,
    expected: dict[str, dict[str, Any]],
    first: bool,
) -> None:
    device = on("h100")
    words = ["--fast", *line.split()] if first else [*line.split(), "--fast"]
    config = resolved(parse(["cifar10-resnet18", *words]).config, device)
    everything = resolved(preset("cifar10-resnet18", run=FAST), device)
    assert config == override(everything, expected)


def test_changes_from_python_win_over_fast(on: Callable[[str], torch.device]) -> None:
    device = on("h100")
    parts = {"attack": {"precision": "fp32"}, "optim": {"amp": "off"}}
    config = preset("cifar10-resnet18", **parts, run=FAST)
    assert chosen(resolved(config, device)) == ("fp32", "fast", "off", "batched")
    later = override(preset("cifar10-resnet18", run=FAST), {**parts, "run": {"seed": 3, **FAST}})
    assert resolved(later, device) == override(resolved(config, device), {"run": {"seed": 3}})
    assert parse(["cifar10-resnet18", "--fast"]).config == preset("cifar10-resnet18", run=FAST)
    assert parse(["cifar10-resnet18", "--no-fast"]).config == preset("cifar10-resnet18")


def test_the_step_takes_what_is_resolved(
    on: Callable[[str], torch.device],
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
) -> None:
    device, model = on("bf16 cpu"), tiny_model()
    config = tiny_config(run=FAST)
    memory = make_memory(config, 24, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainingStep(config, model, memory, optimizer, device)
    assert memory.strategy == "lazy"
    assert (step.method.attack.network.precision, step.method.attack.network.engine) == (
        "bf16",
        "fast",
    )


@pytest.mark.slow
def test_a_fast_run_says_what_was_chosen_and_resumes_as_it_began(
    on: Callable[[str], torch.device], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on("cpu")
    out = tmp_path / "run"
    small = [
        "--limit",
        "64",
        "--epochs",
        "2",
        "--device",
        "cpu",
        "--no-tensorboard",
        "--eval-steps=2",
        "--eval-restarts=1",
    ]
    assert (
        main([*small, "--warmup-epochs", "1", "--decay-epochs", "1", "--fast", "--out", str(out)])
        == 0
    )
    text, err = capsys.readouterr()
    said = "fast: fp32 attacks on a folded copy, no autocast, lazy candidates"
    assert err == ""
    assert " ".join(re.sub(r"[│╭╮╰╯─┃━]", " ", text).split()).count(said) == 2
    config = RunFolder(out).config()
    assert config["run"]["fast"] is True
    assert config["attack"] | {"precision": "fp32", "engine": "fast"} == config["attack"]
    assert (config["epsilon"]["strategy"], config["optim"]["amp"]) == ("lazy", "off")

    on("bf16 cpu")  # where it would choose otherwise
    for words in ([], ["--fast", "--precision", "fp32"], ["--precision", "auto"]):
        assert main([*words, "--resume", "--out", str(out)]) == 0
        assert said in " ".join(capsys.readouterr().out.split())
        assert RunFolder(out).config() == config
    for words, field in (
        (["--precision", "bf16"], "--precision ('fp32' there, 'bf16' given)"),
        (["--no-fast"], "--fast (True there, False given)"),
    ):
        assert main([*words, "--resume", "--out", str(out)]) == 2
        assert field in capsys.readouterr().err


def test_a_run_begun_without_fast_does_not_go_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(tmp_path / "run").create(preset("digits").to_dict(), {})
    assert main(["--fast", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "--fast (False there, True given)" in capsys.readouterr().err


def test_the_strategy_resolved_is_recorded(
    tiny_config: Callable[..., TrainConfig], tiny_fit: Fit, tmp_path: Path
) -> None:
    result = tiny_fit(tiny_config(tmp_path / "run"))
    assert result.config.epsilon.strategy == "lazy"
    assert result.folder.config()["epsilon"]["strategy"] == "lazy"
    assert result.folder.checkpoint()["config"]["epsilon"]["strategy"] == "lazy"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("old", [False, True], ids=["started by this version", "by an earlier one"])
def test_a_run_that_was_killed_goes_on_as_it_began_on_other_hardware(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
) -> None:
    """From its checkpoint, to the bits of one that was not; config.json of an earlier version has no run.fast."""
    run = {"checkpoint_steps": 1}

    def train(config: TrainConfig, **how: Any) -> dict[str, Any]:
        return fit(
            config, model=tiny_model(), data=tiny_data, quiet=True, **how
        ).folder.checkpoint()

    whole = train(tiny_config(tmp_path / "whole", run=run))
    killed = tiny_config(tmp_path / "killed", epsilon={"strategy": "lazy"} if old else {}, run=run)
    call, steps = TrainingStep.__call__, 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise Killed
        return call(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", dies)
        with pytest.raises(Killed):
            train(killed)
    folder = RunFolder(tmp_path / "killed")
    if old:
        config = folder.config()
        del config["run"]["fast"]
        folder.config_path.write_text(json.dumps(config))
        kept = folder.checkpoint()
        del kept["config"]["run"]["fast"]
        folder.save_checkpoint(kept)
    before = folder.config()
    monkeypatch.setattr(hardware, "strategy_for", lambda *_: "batched")
    resumed = train(tiny_config(tmp_path / "killed", run=run), resume=True)
    assert folder.config() == before
    assert resumed["config"]["epsilon"]["strategy"] == "lazy"
    assert torch.equal(resumed["epsilon"], whole["epsilon"])
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value)
