"""The training benchmark times the trainer's own steps, each in turn with the authors' amount of work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.attacks.providers import Setting
from benchmarks.training.measuring import (
    ATTACKS,
    WANTED,
    Case,
    Trainer,
    Workload,
    authors_step,
    best_authors,
    cases,
    measure_case,
)
from iaat_fast.train import TrainConfig
from iaat_fast.train.config import EpsilonConfig, OptimConfig, RunConfig
from tests.benchmarks.conftest import Clock

WORKLOAD = Workload(
    "resnet18", torch.device("cpu"), width=4, depth=10, batch=4, rounds=1, steps=1, pgd=2
)


@pytest.fixture(autouse=True)
def random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IAAT_FAST_DATA", raising=False)


def test_the_cases_are_every_strategy_final_and_precision_the_most_wanted_first() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    assert [name for name in names if name in WANTED] == list(WANTED)
    for strategy in ("lazy", "batched", "sequential"):
        for final in ("exact", "reuse"):
            assert {f"iaat {strategy} {final} {precision}" for precision in ("fp32", "bf16")} <= {
                *names
            }
    for case in cases():
        config = case.config("wrn32-10", WORKLOAD.common())
        assert config.method == case.name.split()[0]
        assert config.model.name == "wrn32-10"
        assert config.epsilon.warmup_epochs == config.optim.lr == 0
        if case.name.endswith("bf16"):
            assert (config.attack.precision, config.optim.amp) == ("bf16", "bf16")


def test_options_that_the_configuration_gets_become_cases() -> None:
    """`optim.graph`, `run.fast` and further strategies."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Epsilon(EpsilonConfig):
        strategy: Literal["auto", "lazy", "batched", "sequential", "padded"] = "auto"  # type: ignore[assignment]

        def __post_init__(self) -> None: ...

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Optim(OptimConfig):
        graph: bool = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Run(RunConfig):
        fast: bool = False

    base = TrainConfig()
    richer = {"epsilon": Epsilon(), "optim": Optim(), "run": Run()}
    for name, part in richer.items():
        object.__setattr__(base, name, part)
    # get_type_hints looks the names up where a class is defined.
    Epsilon.__annotations__["strategy"] = Literal["auto", "lazy", "batched", "sequential", "padded"]
    found = {case.name: case for case in cases(base)}
    new = set(found) - {case.name for case in cases()}
    assert "iaat padded reuse bf16" in new
    assert not any("auto" in name for name in found)
    assert found["iaat --fast"].changes == {"run": {"fast": True}}
    assert found["adv bf16, no graph"].changes["optim"] == {"amp": "bf16", "graph": False}
    assert list(found)[1] == "iaat --fast"


class Passes:
    """Counts images through a network and gradients of its weights."""

    def __init__(self, model: nn.Module) -> None:
        self.images = 0
        self.weights = 0
        model.register_forward_pre_hook(self._forward)
        first = next(model.parameters())
        first.register_hook(self._gradient)

    def _forward(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.images += len(inputs[0])

    def _gradient(self, grad: torch.Tensor) -> None:
        self.weights += 1


def test_the_authors_work_is_three_attacks_with_gradients_of_the_weights_and_one_update() -> None:
    net, data, _ = WORKLOAD.build()
    passes = Passes(net)
    before = [parameter.clone() for parameter in net.parameters()]
    call = authors_step(net, data, WORKLOAD.batch, Setting(steps=WORKLOAD.pgd))
    call()
    # Clean, three attacks with their verdicts, the update.
    assert passes.images == WORKLOAD.batch * (1 + ATTACKS * (WORKLOAD.pgd + 1) + 1)
    assert passes.weights == ATTACKS * WORKLOAD.pgd + 1
    # The learning rate is 0: every step is the same work.
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_a_step_is_the_trainers_with_adapting_radii_and_weights_at_rest() -> None:
    net, data, _ = WORKLOAD.build()
    (case,) = (case for case in cases() if case.name == "iaat batched exact fp32")
    weights = [parameter.clone() for parameter in net.parameters()]
    trainer = Trainer(case.config("resnet18", WORKLOAD.common()), net, data)
    radii = trainer.state.memory.values.clone()
    for _ in range(5):
        trainer()
    moved = trainer.state.memory.values != radii
    assert moved.any()
    assert trainer.state.training_step.totals[3] == 5 * WORKLOAD.batch
    for parameter, old in zip(net.parameters(), weights, strict=True):
        assert torch.equal(parameter, old)
    clean, robust = trainer.shares()
    assert clean is not None
    assert robust is not None
    assert 0 <= robust <= 1


@pytest.mark.slow
def test_a_case_that_raises_is_told() -> None:
    net, data, _ = WORKLOAD.build()
    authors, rows, layout = best_authors(WORKLOAD, net, data)
    seconds = {row.provider: row.p50 for row in rows}
    assert list(seconds) == ["authors, contiguous", "authors, channels last"]
    assert seconds[f"authors, {layout}"] == min(row.p50 for row in rows if row.p50)
    broken = Case("broken", "adv", {"attack": {"steps": 0}})
    row = measure_case(WORKLOAD, broken, net, data, authors)
    assert row.status == "failed"
    assert "attack.steps" in row.detail
    assert row.p50 is None


@pytest.mark.slow
def test_a_run_leaves_a_row_per_case_and_one_per_layout_of_the_authors(tmp_path: Path) -> None:
    some = ["adv bf16", "iaat lazy reuse fp32", "clean fp32"]
    argv = ["--quick", "--device", "cpu", "--rounds", "1", "--batch-size", "4", "--steps", "1"]
    argv += ["--networks", "resnet18", "--only", *some, "--record", str(tmp_path / "it.json")]
    assert main(["training", *argv]) == 0
    result = json.loads((tmp_path / "it.json").read_text())
    providers = [row["provider"] for row in result["rows"]]
    assert providers[:2] == ["authors, contiguous", "authors, channels last"]
    assert providers[2:] == [some[0], some[2], some[1]]
    assert f"authors, {result['authors_taken']['resnet18']}" in providers[:2]
    for row in result["rows"][2:]:
        figures = row["figures"]
        assert (row["status"], row["n"]) == ("ok", 1)
        assert figures["epoch_s"] == pytest.approx(row["p50"] * 12_500)
        assert figures["over_authors"] == pytest.approx(figures["authors_p50_s"] / row["p50"])


@pytest.mark.slow
def test_ratios_are_of_single_steps_however_many_a_call_has(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Ten steps of a case against one of the authors', the latter asleep for as long as the former."""
    net, data, _ = WORKLOAD.build()
    monkeypatch.setattr(Trainer, "__call__", lambda trainer: clock.sleep(0.01))
    monkeypatch.setattr(Trainer, "shares", lambda trainer: (None, None))
    workload = dataclasses.replace(WORKLOAD, rounds=3, steps=10)
    (case,) = (case for case in cases() if case.name == "clean fp32")
    row = measure_case(workload, case, net, data, lambda: clock.sleep(0.1))
    assert row.p50 == pytest.approx(0.01)
    assert row.figures["authors_p50_s"] == pytest.approx(0.1)
    assert row.figures["over_authors"] == pytest.approx(10)


def test_what_the_time_does_not_allow_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--quick", "--device", "cpu", "--time-limit", "0", "--out", str(tmp_path)]
    assert main(["training", *argv, "--only", "adv bf16"]) == 0
    assert "left out after 0 s: resnet18, adv bf16\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--only", "nothing"], "nothing"),
        (["--rounds", "0"], "rounds"),
        (["--networks", "vgg"], "vgg"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["training", *argv, "--device", "cpu"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
