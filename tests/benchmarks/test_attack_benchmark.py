"""The attack benchmark says what it measured, refuses wrong attacks, and reports what is missing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import registry, targets
from benchmarks.__main__ import main
from benchmarks.attacks import measuring, providers, worker
from benchmarks.attacks.agreement import Reference
from benchmarks.attacks.engines import NOT_SPEED, ablations, engines
from benchmarks.attacks.layouts import Layout
from benchmarks.attacks.measuring import aims, measure
from benchmarks.attacks.providers import (
    EXPERT,
    LOOPS,
    PEERS,
    Attack,
    Missing,
    Provider,
    Setting,
    plain_loop,
)
from benchmarks.attacks.worker import Worker, WorkerError
from benchmarks.record import Row
from benchmarks.targets import Spec, Target
from iaat_fast.attacks import options
from iaat_fast.attacks.options import EngineOptions
from tests.forked import ForkedCommands

SETTING = Setting(steps=4)


@pytest.fixture(autouse=True)
def random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IAAT_FAST_DATA", raising=False)


@pytest.fixture
def forked_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "subprocess", ForkedCommands)


@pytest.fixture(scope="module")
def target() -> Target:
    """A ResNet of 10 layers and width 4, and 8 images, none of which fools it."""
    x = targets.smooth_noise(8, 32)
    net = targets.build_network(targets.SMALL, targets.smooth_noise(64, 32))
    with torch.no_grad():
        return Target(net, x, net(x).argmax(1), 10)


def run(target: Target, *competing: Provider) -> list[Row]:
    return measure("it", target, competing, (), SETTING, rounds=1, rates={}).rows


def provider(make: Callable[[Target, Setting], Attack], precision: str = "fp32") -> Provider:
    return Provider(name="it", kind="engine", make=make, what="", precision=precision)


def by_the_loop(
    change: Callable[[Setting], Setting] = lambda setting: setting,
    after: Callable[[Tensor, Tensor], Tensor] = lambda x_adv, x: x_adv,
) -> Callable[[Target, Setting], Attack]:
    """Makes the plain loop, with another setting or with its images changed."""

    def make(target: Target, setting: Setting) -> Attack:
        attack = plain_loop(target, change(setting))
        return lambda x, y: after(attack(x, y), x)

    return make


def one_step_less(setting: Setting) -> Setting:
    return dataclasses.replace(setting, steps=max(setting.steps - 1, 1))


def half_the_step(setting: Setting) -> Setting:
    return dataclasses.replace(setting, alpha=setting.alpha / 2)


WRONG = {
    "one step left out": (by_the_loop(one_step_less), "other numbers of steps"),
    "half the step size": (by_the_loop(half_the_step), "other numbers of steps"),
    "uphill for downhill": (
        by_the_loop(after=lambda x_adv, x: (2 * x - x_adv).clamp(0, 1)),
        "signs",
    ),
    "nothing done": (by_the_loop(after=lambda x_adv, x: x), "signs"),
    "another sample's gradient": (
        by_the_loop(after=lambda x_adv, x: (x + (x_adv - x).roll(1, 0)).clamp(0, 1)),
        "signs",
    ),
    "twice the radius": (by_the_loop(after=lambda x_adv, x: 2 * x_adv - x), "from x, at most"),
    "out of the box": (by_the_loop(after=lambda x_adv, x: x_adv - 0.01), "expected"),
    "NaN": (by_the_loop(after=lambda x_adv, x: x_adv * torch.nan), "from x, at most"),
    "another dtype": (by_the_loop(after=lambda x_adv, x: x_adv.double()), "float64"),
    "a part of the batch": (by_the_loop(after=lambda x_adv, x: x_adv[1:]), "expected"),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_attack_is_refused_and_never_timed(
    case: str, precision: str, target: Target
) -> None:
    make, reason = WRONG[case]
    (row,) = run(target, provider(make, precision))
    assert row.status == "wrong"
    assert reason in row.detail
    assert row.p50 is None


def test_an_attack_that_leaves_the_ball_only_from_a_random_start_is_refused(target: Target) -> None:
    def make(target: Target, setting: Setting) -> Attack:
        wider = dataclasses.replace(setting, eps=setting.eps * 2)
        return plain_loop(target, wider if setting.random_start else setting)

    (row,) = run(target, provider(make))
    assert (row.status, row.p50) == ("wrong", None)


def test_an_attack_that_raises_is_told_and_the_others_are_timed(target: Target) -> None:
    def make(target: Target, setting: Setting) -> Attack:
        raise RuntimeError("out of\nmemory")

    broken, plain = run(target, provider(make), LOOPS[0])
    assert (broken.status, broken.detail) == ("failed", "RuntimeError: out of memory")
    assert plain.status == "ok"


@pytest.mark.slow
def test_loops_and_engines_agree_with_the_plain_loop(target: Target) -> None:
    reference = Reference(target, SETTING)
    known = [*LOOPS, *engines(torch.device("cpu"), tf32=False, with_compile=False)]
    has_fp16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    for each in known:
        if each.precision == "fp16" and not has_fp16:
            with pytest.raises(Missing, match="no float16 convolutions"):
                reference.compare(each)
            continue
        agreement, fault = reference.compare(each)
        assert fault is None, each.name
        assert agreement is not None
        if each.plain:
            assert (agreement.same_pixels, agreement.flipped_signs) == (1, 0), each.name


def test_a_missing_peer_is_reported(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    missing, plain = run(target, PEERS[0], LOOPS[0])
    assert missing.status == "missing"
    assert "torchattacks" in missing.detail
    assert plain.status == "ok"
    assert "torchattacks" not in plain.figures["over"]


def test_versions_of_missing_peers_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert providers.versions() == dict.fromkeys(providers.PACKAGES)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_worker")
def test_a_run_leaves_a_row_for_everything_that_was_timed(tmp_path: Path) -> None:
    small = ["--models", "small", "--batch-sizes", "4", "--rounds", "2"]
    only = ["--only", "plain-loop", "authors-loop", "exact"]
    argv = ["--device", "cpu", "--steps", "1", "--no-profile", *small, *only]
    argv += ["--out", str(tmp_path)]
    assert main(["attacks", *argv]) == 0
    (path,) = tmp_path.glob("attacks/*.json")
    result = json.loads(path.read_text())
    assert result["attack"]["steps"] == 1
    assert result["peers"].keys() == set(providers.PACKAGES)
    assert result["matmul_flops_per_s"].keys() == {"fp32"}
    (case,), (target,) = result["targets"], result["targets"].values()
    assert target["shape"] == [4, 3, 32, 32]
    assert "random" in target["images"]
    assert target["best_peer"] in ("plain-loop", "authors-loop")
    by_metric: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        assert (row["case"], row["status"]) == (case, "ok")
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        by_metric.setdefault(row["metric"], []).append(row)
    assert [row["provider"] for row in by_metric["time"]] == only[1:]
    for row in by_metric["time"]:
        figures = row["figures"]
        assert row["n"] == 2
        assert figures["images_per_second"] == pytest.approx(4 / row["p50"])
        assert figures["over_best_peer"] == figures["over"][target["best_peer"]]
        assert figures["flops_per_second"] == pytest.approx(target["flops"] / row["p50"])
        assert figures["share_of_matmul"] > 0
        assert figures["agreement"]["loss_gain"] > 0.9
    tried = ["contiguous", "channels last"]
    assert [row["provider"] for row in by_metric["time by layout"]] == [
        f"{name}, {layout}" for name in ("plain-loop", "authors-loop") for layout in tried
    ]
    for name in ("plain-loop", "authors-loop"):
        assert target["layouts"][name]["taken"] == target["layouts"][name]["best"]
    layouts = {row["provider"]: row["figures"]["layout"] for row in by_metric["time"]}
    assert layouts["plain-loop"] == target["layouts"]["plain-loop"]["taken"]
    assert layouts["exact"] in tried
    steps = by_metric["time, option by option"]
    assert [row["provider"] for row in steps] == ["authors-loop", "plain-loop", "exact"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_worker")
def test_a_worker_tells_what_went_wrong_and_answers_on(tmp_path: Path) -> None:
    argv = ["--device", "cpu", "--only", "plain-loop"]
    spec = Spec(model="small", batch=2, device="cpu")
    layouts = [Layout(False), Layout(True)]
    gone = dataclasses.replace(spec, data=str(tmp_path / "gone.npz"))
    with Worker(argv) as worker:
        with pytest.raises(WorkerError, match=r"profile: FileNotFoundError: .*gone\.npz"):
            worker.profile(gone, Setting(steps=1), "plain-loop", layouts[0])
        found = worker.try_out(spec, Setting(steps=1), ["plain-loop"], layouts)
        assert list(found["plain-loop"]) == ["contiguous", "channels last"]
    with pytest.raises(WorkerError, match="the process"):
        Worker(["--device", "nowhere"]).try_out(spec, Setting(steps=1), ["plain-loop"], layouts)


def test_cases_are_measured_in_the_order_given_and_what_is_left_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--device", "cpu", "--cases", "wrn32-10:4", "resnet18:512", "resnet18:128"]
    options = registry.parse("attacks", argv)
    assert options.cases == [("wrn32-10", 4), ("resnet18", 512), ("resnet18", 128)]
    argv = ["--device", "cpu", "--cases", "wrn32-10:4", "resnet18:8", "--only", "exact"]
    argv += ["--time-limit", "0", "--no-profile", "--record", str(tmp_path / "new" / "it.json")]
    assert main(["attacks", *argv]) == 0
    assert "left out after 0 s: wrn32-10, batch 4\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "new" / "it.json").read_text())
    assert record["left_out"] == ["wrn32-10, batch 4", "resnet18, batch 8"]


def test_without_peers_or_profiles_no_other_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "Worker", None)
    small = ["--models", "small", "--batch-sizes", "2", "--rounds", "1"]
    argv = ["--device", "cpu", "--steps", "1", *small, "--only", "exact", "--no-profile"]
    assert main(["attacks", *argv, "--record", str(tmp_path / "it.json")]) == 0
    record = json.loads((tmp_path / "it.json").read_text())
    (target,) = record["targets"].values()
    assert (target["layouts"], target["best_peer"]) == ({}, None)
    assert {row["metric"] for row in record["rows"]} == {"time", "time, option by option"}
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


@pytest.mark.slow
def test_the_experts_loop_is_the_attack_and_compiled_once() -> None:
    torch.manual_seed(0)
    # Compiled in seconds; the attack has no part in what a network is.
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    x = targets.smooth_noise(8, 32)
    with torch.no_grad():
        target = Target(net.eval(), x, net(x).argmax(1), 10)
    (row,) = run(target, EXPERT)
    assert (row.status, row.detail) == ("ok", "")
    assert row.figures["agreement"]["flipped_signs"] < 0.2
    # Compiled before it is timed, and only then.
    assert row.figures["compile_s"] > 2 * row.p50
    again = EXPERT.make(target, dataclasses.replace(SETTING, steps=1))
    again(target.x, target.y)
    assert again.compile_s == row.figures["compile_s"]  # type: ignore[attr-defined]


def test_only_full_networks_have_an_aim() -> None:
    assert aims("wrn32-10", None, 128, 10) == {"over_best_peer": 2.9, "share_of_matmul": 0.52}
    assert aims("wrn32-10", 8, 128, 10) == aims("wrn32-10", None, 128, 2) == {}


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--only", "unknown"], "unknown"),
        (["--models", "vgg"], "vgg"),
        (["--cases", "vgg:8"], "vgg:8"),
        (["--cases", "resnet18:0"], "resnet18:0"),
        (["--cases", "resnet18:8", "--models", "resnet18"], "no --models"),
        (["--rounds", "0"], "rounds"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["attacks", *argv, "--device", "cpu"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def options_of(provider: Provider, device: str) -> tuple[dict[str, bool], str]:
    """The options for speed that a provider turns on on a device, and its precision."""
    known = provider.make.keywords  # type: ignore[attr-defined]
    resolved = options.resolve_engine(known["engine"], known["precision"])
    idle = (*NOT_SPEED, *(["graph"] if device == "cpu" else []))
    on = {k: v for k, v in dataclasses.asdict(resolved).items() if k not in idle}
    return on, known["precision"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("with_compile", [False, True])
def test_each_ablation_turns_on_one_option_more(device: str, with_compile: bool) -> None:
    steps = ablations(torch.device(device), with_compile=with_compile)
    first, precision = options_of(steps[0].provider, device)
    assert (any(first.values()), precision) == (False, "fp32")
    for lower, upper in itertools.pairwise(steps):
        before, after = options_of(lower.provider, device), options_of(upper.provider, device)
        changed = [name for name in before[0] if before[0][name] != after[0][name]]
        changed += [after[1]] if before[1] != after[1] else []
        assert changed == [upper.adds]
    last, _ = options_of(steps[-1].provider, device)
    assert last == {**options_of_fast(device), "compile": with_compile}
    names = [c.name for c in engines(torch.device(device), tf32=True, with_compile=with_compile)]
    assert len(names) == len(set(names))
    assert {step.provider.name for step in steps} <= set(names)


def options_of_fast(device: str) -> dict[str, bool]:
    idle = (*NOT_SPEED, *(["graph"] if device == "cpu" else []))
    return {k: v for k, v in dataclasses.asdict(EngineOptions()).items() if k not in idle}


def test_random_networks_tell_images_apart_and_have_batch_norm_to_fold(target: Target) -> None:
    many = targets.smooth_noise(64, 32)
    with torch.no_grad():
        classes = target.model(many).argmax(1)
    assert len(classes.unique()) >= 4
    norms = [m for m in target.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 0.01
        assert norm.weight.std() > 0.05 * norm.weight.mean()
