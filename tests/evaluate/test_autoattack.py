"""AutoAttack's bookkeeping: who is attacked, who counts as robust, and that an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from iaat_fast.attacks import APGD, APGDT, FABT, PGD, Square
from iaat_fast.attacks.attack import Attack
from iaat_fast.data import Split, fetch
from iaat_fast.evaluate import (
    AutoAttackResult,
    EvalTarget,
    accuracy,
    autoattack,
    evaluate_suite,
    recount,
)
from iaat_fast.evaluate.autoattack import standard
from iaat_fast.evaluate.cli import main
from iaat_fast.evaluate.results import read_evaluation
from iaat_fast.evaluate.table import suite_table
from iaat_fast.report.tables import measured_columns

EPS = 0.02


def random_split(samples: int, classes: int) -> Split:
    """Pixels stay 64/255 away from 0 and 1, so that the box does not cut the ball."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(64, 192, (samples, 6, 6, 1), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(classes, (samples,), generator=generator))


class InFloat64(nn.Module):
    """A model whose rounding no verdict sees."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.double())


@pytest.fixture
def linear() -> InFloat64:
    torch.manual_seed(0)
    return InFloat64(nn.Flatten(), nn.Linear(36, 5))


@pytest.fixture
def network() -> InFloat64:
    torch.manual_seed(1)
    return InFloat64(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )


def labelled(model: nn.Module, samples: int, wrong: int) -> Split:
    """Every `wrong`-th sample has another label than the model gives it."""
    split = random_split(samples, 5)
    with torch.no_grad():
        predicted = model(everything(split)[0]).argmax(1)
    shift = torch.arange(samples) % wrong == 0
    return Split(split.images, (predicted + shift.long()) % 5)


def everything(split: Split) -> tuple[Tensor, Tensor]:
    return fetch(split, torch.arange(len(split)))


def small(model: nn.Module, steps: int = 5, **how: Any) -> dict[str, Attack]:
    """The four attacks with small budgets."""
    return {
        "apgd-ce": APGD(model, steps=steps, **how),
        "apgd-t": APGDT(model, steps=steps, n_target_classes=2, **how),
        "fab-t": FABT(model, steps=steps, n_target_classes=2, **how),
        "square": Square(model, n_queries=10 * steps, **how),
    }


def without_seconds(result: AutoAttackResult) -> Any:
    stages = tuple(dataclasses.replace(stage, seconds=0.0) for stage in result.stages)
    return result.natural.tolist(), result.correct.tolist(), stages, result.attacks


def test_a_linear_model_is_measured_exactly(linear: InFloat64) -> None:
    """Against min over j of (w_y - w_j) x / ||w_y - w_j||_1."""
    split = labelled(linear, 60, wrong=6)
    x, y = everything(split)
    weight, logits = linear.layers[1].weight.detach(), linear(x).detach()
    ahead = logits.gather(1, y.view(-1, 1)) - logits
    norms = (weight[y].unsqueeze(1) - weight).abs().sum(2)
    radius = (ahead / norms).scatter(1, y.view(-1, 1), torch.inf).amin(1)
    assert (radius - EPS).abs().min() > 1e-6, "images are float32"
    result = autoattack(linear, split, eps=EPS, attacks=small(linear, 30))
    assert torch.equal(result.correct, radius > EPS)
    assert torch.equal(result.natural, radius > 0)
    assert 0.2 < result.accuracy < 0.7


def test_images_on_request_are_those_that_fool_the_model_else_the_samples_own(
    network: InFloat64,
) -> None:
    split = labelled(network, 24, wrong=6)
    x, y = everything(split)
    result = autoattack(network, split, eps=EPS, attacks=small(network), batch_size=7, images=True)
    assert result.x_adv is not None
    assert result.correct.any()
    assert (result.natural & ~result.correct).any()
    assert torch.equal(network(result.x_adv).argmax(1) == y, result.correct)
    moved = (result.x_adv != x).flatten(1).any(1)
    assert torch.equal(moved, result.natural & ~result.correct)
    assert (result.x_adv - x).abs().max() <= EPS + 1e-6
    plain = autoattack(network, split, eps=EPS, attacks=small(network), batch_size=7)
    assert without_seconds(plain) == without_seconds(result)
    assert plain.x_adv is None
    assert "x_adv" not in plain.state()


def test_images_survive_an_interruption(network: InFloat64) -> None:
    split, saved = labelled(network, 12, wrong=6), []
    options: dict[str, Any] = {"eps": EPS, "attacks": small(network), "batch_size": 5}

    def keep(result: AutoAttackResult) -> None:
        file = io.BytesIO()
        torch.save(result.state(), file)
        saved.append(file)

    whole = autoattack(network, split, images=True, save=keep, **options)
    saved[0].seek(0)
    part = AutoAttackResult.from_state(torch.load(saved[0]))
    assert not part.complete
    resumed = autoattack(network, split, images=True, resume=part, **options)
    assert torch.equal(resumed.x_adv, whole.x_adv)
    part = dataclasses.replace(part, x_adv=None)
    with pytest.raises(ValueError, match=r"^resume: made without images, expected one made with"):
        autoattack(network, split, images=True, resume=part, **options)


def test_the_standard_version_is_the_published_one(network: InFloat64) -> None:
    attacks = standard(network)
    assert list(attacks) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [attack.steps for attack in attacks.values()] == [100, 100, 100, 5000]
    assert [attack.restarts for attack in attacks.values()] == [1, 1, 1, 1]
    assert [attack.loss for attack in attacks.values()][:2] == ["ce", "dlr"]
    targeted = attacks["apgd-t"], attacks["fab-t"]
    assert [attack.n_target_classes for attack in targeted] == [9, 9]  # type: ignore[attr-defined]


def test_the_four_attacks_share_one_copy(network: InFloat64) -> None:
    attacks = standard(network, precision="bf16", engine="fast")
    (shared,) = {attack.network for attack in attacks.values()}
    assert (shared.precision, shared.engine) == ("bf16", "fast")


@pytest.mark.usefixtures("small_budgets")
def test_a_coarse_copy_gives_gradients_and_no_verdict() -> None:
    """In bf16 this model gives every image one class; its own verdicts decide, in another batch too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).eval()
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
        net[1].bias.copy_(torch.arange(5) * 1e-4 + 100.0)
    split = labelled(net, 12, wrong=6)
    result = autoattack(net, split, eps=EPS, precision="bf16", images=True)
    assert (result.precision, result.engine) == ("bf16", "auto")
    assert result.x_adv is not None
    with torch.no_grad():
        predicted = torch.cat([net(x) for x in result.x_adv.split(1)]).argmax(1)
    assert torch.equal(predicted == split.labels, result.correct)
    assert 0 < result.accuracy < result.natural.double().mean()


def test_it_runs_by_name(linear: InFloat64) -> None:
    result = autoattack(linear, labelled(linear, 3, wrong=3), eps=0.5)
    assert result.complete
    assert result.accuracy == 0
    assert [stage.standing_before for stage in result.stages] == [2, 0, 0, 0]


def test_stages_attack_who_still_stands(network: InFloat64) -> None:
    split = labelled(network, 50, wrong=5)
    calls: list[tuple[str, int, int]] = []
    result = autoattack(
        network,
        split,
        eps=EPS,
        batch_size=16,
        attacks=small(network),
        progress=lambda *call: calls.append(call),
    )
    standing = int(result.natural.sum())
    assert result.natural.double().mean() == accuracy(network, split) == 0.8
    for stage in result.stages:
        assert stage.standing_before == standing
        standing -= stage.fallen
        assert stage.accuracy_after == standing / 50
        done = [call[1:] for call in calls if call[0] == stage.attack]
        assert done[-1] == (stage.standing_before, stage.standing_before)
        assert len(done) == -(-stage.standing_before // 16)
    assert result.stages[0].fallen > 0
    assert 0 < standing == int(result.correct.sum())
    assert not (result.correct & ~result.natural).any()


def test_what_is_misclassified_is_not_robust(network: InFloat64) -> None:
    """Not even where every attack would turn it to its own class; nor does any attack look at it."""
    split = labelled(network, 20, wrong=1)
    result = autoattack(network, split, eps=0.0, attacks={"pgd": PGD(network)})
    assert result.accuracy == 0
    assert result.stages[0].standing_before == 0


def test_a_radius_of_0_leaves_everybody_standing(network: InFloat64) -> None:
    split = labelled(network, 10, wrong=5)
    result = autoattack(network, split, eps=0.0, attacks=small(network, 2))
    assert torch.equal(result.correct, result.natural)


def test_verdicts_do_not_depend_on_the_batch_size(network: InFloat64) -> None:
    split = labelled(network, 40, wrong=8)
    found = [
        autoattack(network, split, eps=0.01, batch_size=size, seed=3, attacks=small(network))
        for size in (7, 40)
    ]
    assert without_seconds(found[0]) == without_seconds(found[1])
    assert 0 < found[0].accuracy < found[0].natural.double().mean()


def test_an_interrupted_evaluation_goes_on_where_it_was(network: InFloat64) -> None:
    split = labelled(network, 20, wrong=10)
    options: Any = {"eps": 0.01, "batch_size": 8, "seed": 1}
    saved: list[AutoAttackResult] = []
    whole = autoattack(network, split, attacks=small(network), save=saved.append, **options)
    assert len(saved) >= 8
    assert saved[-1].complete
    for k, unfinished in list(enumerate(saved))[::4]:
        file = io.BytesIO()
        torch.save(unfinished.state(), file)
        file.seek(0)
        back = AutoAttackResult.from_state(torch.load(file, weights_only=True))
        again: list[AutoAttackResult] = []
        result = autoattack(
            network, split, attacks=small(network), resume=back, save=again.append, **options
        )
        assert without_seconds(result) == without_seconds(whole)
        assert len(again) == len(saved) - 1 - k, "nothing is done twice"


def test_the_model_is_as_it_was(network: InFloat64) -> None:
    split = labelled(network, 8, wrong=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    autoattack(network, split, eps=EPS, attacks=small(network))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, r"^eps: -0\.1, expected a number >= 0"),
        ({"eps": 8}, ValueError, r"^eps: 8, expected at most 1, the width of \[0, 1\]; 8/255\?"),
        ({"eps": "8/255"}, TypeError, r"^eps: '8/255', expected a number >= 0"),
        ({"version": "plus"}, ValueError, r"^version: 'plus', expected one of 'standard'"),
        ({"batch_size": 0}, ValueError, r"^batch_size: 0, expected at least 1"),
        ({"seed": 0.5}, TypeError, r"^seed: 0\.5, expected an int"),
        ({"precision": "int8"}, ValueError, r"^precision: 'int8', expected one of 'fp32'"),
        ({"engine": "slow"}, ValueError, r"^engine: 'slow', expected one of 'auto'"),
        (
            {"engine": "fast", "attacks": {"pgd": 1}},
            ValueError,
            r"^engine: 'fast', expected 'auto' with attacks of your own",
        ),
        ({"attacks": {}}, ValueError, r"^attacks: expected at least one"),
        ({"attacks": {"pgd": 1}}, TypeError, r"^attacks: 'pgd' is int, expected an attack"),
    ],
)
def test_bad_arguments(
    network: InFloat64, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        autoattack(network, labelled(network, 4, wrong=2), **changes)


def test_attacks_that_do_not_fit(network: InFloat64, linear: InFloat64) -> None:
    split = labelled(network, 4, wrong=2)
    with pytest.raises(ValueError, match=r"^attacks: 'pgd' attacks another model"):
        autoattack(network, split, attacks={"pgd": PGD(linear)})
    with pytest.raises(ValueError, match=r"^attacks: 'pgd' takes targets"):
        autoattack(network, split, attacks={"pgd": PGD(network, targeted=True)})


@pytest.mark.parametrize(
    ("classes", "few"), [(3, "3 classes,"), (10, "3 classes with finite logits,")]
)
def test_too_few_classes_are_said_before_any_attack(classes: int, few: str) -> None:
    head = nn.Linear(36, classes)
    head.bias.data[3:] = -torch.inf
    three = InFloat64(nn.Flatten(), head)
    saved: list[AutoAttackResult] = []
    with pytest.raises(ValueError, match=rf"^model: {few} expected at least 4"):
        autoattack(three, random_split(4, 3), save=saved.append)
    assert not saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.01}, r"^resume: of eps 0\.02, expected 0\.01"),
        ({"seed": 1}, r"^resume: of seed 0, expected 1"),
        ({"attacks": ("apgd-ce",)}, r"^resume: of attacks .*'square'\), expected \('apgd-ce',\)"),
        ({"samples": 3}, r"^resume: of samples 4, expected 3"),
    ],
)
def test_a_result_of_something_else_is_not_resumed(
    network: InFloat64, changes: dict[str, Any], message: str
) -> None:
    split = labelled(network, 4, wrong=2)
    result = autoattack(network, split, eps=EPS, attacks=small(network, 1))
    split = split.first(changes.pop("samples", 4))
    attacks = {name: small(network, 1)[name] for name in changes.pop("attacks", result.attacks)}
    with pytest.raises(ValueError, match=message):
        autoattack(network, split, **{"eps": EPS, "attacks": attacks, **changes}, resume=result)


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["iaat_fast.evaluate.autoattack"],
        "standard",
        lambda model, **how: small(model, 2, **how),
    )
    monkeypatch.setattr(
        sys.modules["iaat_fast.evaluate.autoattack"],
        "rand",
        lambda model, **how: {"apgd-ce": APGD(model, steps=2, eot=2, **how)},
    )


@pytest.mark.usefixtures("small_budgets")
def test_both_versions_are_parts_of_a_record(network: InFloat64, tmp_path: Path) -> None:
    target = EvalTarget.of(network, labelled(network, 6, wrong=3))
    told: list[tuple[str, float, float]] = []
    for parts in (["autoattack"], ["autoattack", "autoattack-rand"]):
        content = evaluate_suite(
            target, "quick", folder=tmp_path, parts=parts, tell=lambda *call: told.append(call)
        )
    rows = content["measurements"]
    assert [row["key"] for row in rows] == ["autoattack-eps8", "autoattack-rand-eps8"]
    assert [row["version"] for row in rows] == ["standard", "rand"]
    assert [stage["attack"] for stage in rows[1]["stages"]] == ["apgd-ce"]
    assert told[-1][2] == 0
    printed = io.StringIO()
    Console(file=printed, width=80).print(suite_table(content))
    assert "AutoAttack at ε = 8/255" in printed.getvalue()
    assert "AutoAttack (rand) at ε = 8/255" in printed.getvalue()


@pytest.mark.usefixtures("small_budgets")
def test_a_result_of_other_gradients_is_not_resumed(network: InFloat64) -> None:
    split = labelled(network, 4, wrong=2)
    result = autoattack(network, split, eps=EPS)
    with pytest.raises(ValueError, match=r"^resume: of engine auto, expected fast"):
        autoattack(network, split, eps=EPS, engine="fast", resume=result)


@pytest.mark.usefixtures("small_budgets")
def test_a_suite_keeps_other_gradients_apart(network: InFloat64, tmp_path: Path) -> None:
    target = EvalTarget.of(network, labelled(network, 4, wrong=2))
    options: Any = {"folder": tmp_path, "parts": ["autoattack"], "eps": [EPS]}
    plain = evaluate_suite(target, "quick", **options)["measurements"]
    content = evaluate_suite(target, "quick", autoattack_engine="fast", **options)
    first, second = content["measurements"]
    assert [first] == plain
    assert "engine" not in first
    assert second["key"] == f"{first['key']}-fast"
    assert second["engine"] == "fast"
    assert first["accuracy"] == second["accuracy"]
    (evaluation,) = [read_evaluation(tmp_path / "results.json")]
    columns = measured_columns([evaluation], ("autoattack",))
    assert [column.head for column in columns] == [
        "AutoAttack, ε = 5.1",
        "AutoAttack (fast), ε = 5.1",
    ]
    assert [column.pick(evaluation).key for column in columns] == [first["key"], second["key"]]  # type: ignore[union-attr]


@pytest.mark.usefixtures("small_budgets")
def test_it_is_a_part_of_a_suite(network: InFloat64, tmp_path: Path) -> None:
    target = EvalTarget.of(network, labelled(network, 30, wrong=5))
    told: list[tuple[str, float, float]] = []
    content = evaluate_suite(
        target,
        "quick",
        folder=tmp_path,
        parts=["natural", "autoattack"],
        eps=[0.005, 2 / 255],
        tell=lambda *call: told.append(call),
    )
    assert content["complete"]
    natural, lower, upper = content["measurements"]
    assert [row["key"] for row in (lower, upper)] == ["autoattack-eps1.275", "autoattack-eps2"]
    assert natural["accuracy"] >= lower["accuracy"] >= upper["accuracy"]
    for row in (lower, upper):
        assert row["kind"] == row["part"] == "autoattack"
        assert [stage["attack"] for stage in row["stages"]] == list(small(network))
        assert row["stages"][-1]["accuracy_after"] == row["accuracy"]
        assert row["samples"] == 30
        assert row["interval_95"][0] <= row["accuracy"] <= row["interval_95"][1]
    direct = autoattack(network, target.split, eps=2 / 255)
    with np.load(tmp_path / "verdicts.npz") as verdicts:
        assert np.array_equal(verdicts["autoattack-eps2"], direct.correct.numpy())
    assert recount(tmp_path, np.arange(30))["autoattack-eps2"]["correct"] == upper["correct"]
    assert told
    assert told[-1][2] == 0
    assert not (tmp_path / "progress.pt").exists()


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_a_stopped_suite_goes_on_in_the_middle_of_an_attack(
    stop_at: int, network: InFloat64, tmp_path: Path
) -> None:
    target = EvalTarget.of(network, labelled(network, 30, wrong=5))
    options: Any = {"parts": ["autoattack"], "eps": [2 / 255], "batch_size": 8}
    told: dict[str, list[float]] = {"whole": [], "stopped": []}

    def measured(folder: str, stop_at: int = -1) -> dict[str, Any]:
        def tell(name: str, done: float, remaining: float) -> None:
            told[folder].append(done)
            if len(told[folder]) == stop_at:
                raise KeyboardInterrupt

        content = evaluate_suite(target, "quick", folder=tmp_path / folder, tell=tell, **options)
        (row,) = content["measurements"]
        stages = [{**stage, "seconds": 0} for stage in row["stages"]]
        return {**row, "stages": stages, "seconds": 0}

    with pytest.raises(KeyboardInterrupt):
        measured("stopped", stop_at)
    assert (tmp_path / "stopped" / "progress.pt").exists()
    assert measured("stopped") == measured("whole")
    assert told["stopped"] == told["whole"], "no batch is attacked twice"
    assert not (tmp_path / "stopped" / "progress.pt").exists()


def test_the_command_line_measures_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a radius where everything falls, which spares the queries of Square."""
    argv = [str(run), "--suite", "quick", "--parts", "autoattack", "--eps", "255", "--limit", "4"]
    assert main(argv) == 0
    assert "AutoAttack at ε = 255/255" in capsys.readouterr().out
    (file,) = (run / "evaluation").glob("*/results.json")
    (row,) = json.loads(file.read_text())["measurements"]
    assert (row["key"], row["kind"], row["accuracy"]) == ("autoattack-eps255", "autoattack", 0)
    assert [stage["attack"] for stage in row["stages"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_gradients_without_the_part_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["runs/none", "--suite", "quick", "--autoattack-precision", "bf16"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "--autoattack-precision: bf16, expected --parts with autoattack" in error
    assert error.count("\n") == 1
