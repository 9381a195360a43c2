"""The attack benchmark says what it measured, refuses wrong attacks, and reports what is missing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.attacks import images, networks, peers, race, survivors, tables
from benchmarks.attacks.__main__ import main
from benchmarks.attacks.agreement import Reference
from benchmarks.attacks.contender import Attack, Contender, Missing, Setting, Target
from benchmarks.attacks.engines import NOT_SPEED, engines, ladder
from benchmarks.attacks.expert import EXPERT
from benchmarks.attacks.layouts import Layout
from benchmarks.attacks.loops import LOOPS, plain_loop
from benchmarks.attacks.measure import Case, Record, measure
from benchmarks.attacks.options import cases, parse
from benchmarks.attacks.target import Spec
from benchmarks.attacks.worker import Worker, WorkerError
from iaat_fast.attacks import options
from iaat_fast.attacks.options import EngineOptions

SETTING = Setting(steps=4)


@pytest.fixture(autouse=True)
def random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IAAT_FAST_DATA", raising=False)


@pytest.fixture(scope="module")
def target() -> Target:
    """A ResNet-18 of width 4 and 8 images, none of which fools it."""
    x = images.smooth_noise(8, 32)
    net = networks.make("resnet18", images.smooth_noise(64, 32), width=4)
    with torch.no_grad():
        return Target(net, x, net(x).argmax(1), 10)


def run(target: Target, *contenders: Contender) -> list[Record]:
    return measure(target, contenders, (), SETTING, rounds=1, rates={})[1]


def contender(make: Callable[[Target, Setting], Attack], precision: str = "fp32") -> Contender:
    return Contender(name="it", kind="engine", make=make, what="", precision=precision)


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
    (record,) = run(target, contender(make, precision))
    assert record.status == "wrong"
    assert reason in record.detail
    assert record.p50_s is None


def test_an_attack_that_leaves_the_ball_only_from_a_random_start_is_refused(target: Target) -> None:
    def make(target: Target, setting: Setting) -> Attack:
        wider = dataclasses.replace(setting, eps=setting.eps * 2)
        return plain_loop(target, wider if setting.random_start else setting)

    (record,) = run(target, contender(make))
    assert (record.status, record.p50_s) == ("wrong", None)


def test_an_attack_that_raises_is_told_and_the_others_are_timed(target: Target) -> None:
    def make(target: Target, setting: Setting) -> Attack:
        raise RuntimeError("out of\nmemory")

    broken, plain = run(target, contender(make), LOOPS[0])
    assert (broken.status, broken.detail) == ("failed", "RuntimeError: out of memory")
    assert plain.status == "ok"


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
    missing, plain = run(target, peers.PEERS[0], LOOPS[0])
    assert missing.status == "missing"
    assert "torchattacks" in missing.detail
    assert plain.status == "ok"
    assert "torchattacks" not in plain.over


def test_versions_of_missing_peers_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert peers.versions() == dict.fromkeys(peers.PACKAGES)


def test_a_run_leaves_its_record_a_table_and_a_figure(tmp_path: Path) -> None:
    small = ["--models", "resnet18", "--width", "4", "--batch-sizes", "4", "--rounds", "2"]
    half = ["fp16"] if torch.ops.mkldnn._is_mkldnn_fp16_supported() else []
    only = ["--only", "plain-loop", "authors-loop", "exact", "fast", *half]
    argv = ["--device", "cpu", "--steps", "2", *small, *only, "--out", str(tmp_path)]
    assert main(argv) == 0
    result = json.loads((tmp_path / "attacks.json").read_text())
    assert result["command"] == ["python", "-m", "benchmarks.attacks", *argv]
    assert {"cpu", "torch", "commit", "threads"} <= result["machine"].keys()
    assert result["setting"]["steps"] == 2
    assert result["peers"].keys() == set(peers.PACKAGES)
    assert result["matmul_flops_per_s"].keys() == {"fp32", *half}
    (case,) = result["cases"]
    assert case["shape"] == [4, 3, 32, 32]
    assert "random" in case["images"]
    assert case["best_peer"] in ("plain-loop", "authors-loop")
    assert [record["name"] for record in case["records"]] == only[1:]
    for record in case["records"]:
        assert (record["status"], record["n"]) == ("ok", 2)
        assert 0 < record["p20_s"] <= record["p50_s"] <= record["p80_s"]
        assert record["images_per_second"] == pytest.approx(4 / record["p50_s"])
        assert record["over_best_peer"] == record["over"][case["best_peer"]]
        assert record["flops_per_second"] == pytest.approx(case["flops"] / record["p50_s"])
        assert record["share_of_matmul"] > 0
        assert record["agreement"]["loss_gain"] > 0.9
        spent = record["device_time"]
        assert spent["kinds"]["convolutions"] > 0
        assert spent["wall_s"] == pytest.approx(sum(spent["kinds"].values()))
    tried = ["contiguous", "channels last"]
    for name in ("plain-loop", "authors-loop"):
        assert list(case["layouts"][name]["seconds"]) == tried
        assert case["layouts"][name]["taken"] == case["layouts"][name]["best"]
    layouts = {record["name"]: record["layout"] for record in case["records"]}
    assert layouts["plain-loop"] == case["layouts"]["plain-loop"]["taken"]
    assert layouts["exact"] == layouts["fast"] in tried
    assert [rung["name"] for rung in case["ladder"]] == ["authors-loop", *only[1:2], *only[3:5]]
    table = (tmp_path / "attacks.md").read_text()
    assert "| exact | fp32 |" in table
    assert "no gradients of weights" in table
    assert "| peer | contiguous | channels last | raced in |" in table
    assert "| attack | wall | device | convolutions |" in table
    assert (tmp_path / "attacks-resnet18.png").read_bytes().startswith(b"\x89PNG")


def test_a_worker_tells_what_went_wrong_and_answers_on(tmp_path: Path) -> None:
    argv = ["--device", "cpu", "--width", "4", "--only", "plain-loop"]
    spec = Spec(model="resnet18", batch=2, device="cpu", width=4)
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
    options = parse(["--device", "cpu", "--cases", "wrn32-10:4", "resnet18:512", "resnet18:128"])
    assert cases(options) == [("wrn32-10", 4), ("resnet18", 512), ("resnet18", 128)]
    argv = ["--device", "cpu", "--cases", "wrn32-10:4", "resnet18:8", "--only", "exact"]
    assert main([*argv, "--time-limit", "0", "--no-profile", "--out", str(tmp_path)]) == 0
    assert "left out after 0 s: wrn32-10, batch 4\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "attacks.json").read_text())
    assert record["left_out"] == ["wrn32-10, batch 4", "resnet18, batch 8"]


def test_without_peers_or_profiles_no_other_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "Worker", None)
    small = ["--models", "resnet18", "--width", "4", "--batch-sizes", "2", "--rounds", "1"]
    argv = ["--device", "cpu", "--steps", "1", *small, "--only", "exact", "--no-profile"]
    assert main([*argv, "--record-only", "--out", str(tmp_path)]) == 0
    (case,) = json.loads((tmp_path / "attacks.json").read_text())["cases"]
    assert (case["layouts"], case["best_peer"]) == ({}, None)
    assert case["records"][0]["device_time"] is None


@pytest.mark.slow
def test_the_experts_loop_is_the_attack_and_compiled_once() -> None:
    torch.manual_seed(0)
    # Compiled in seconds; the attack has no part in what a network is.
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    x = images.smooth_noise(8, 32)
    with torch.no_grad():
        target = Target(net.eval(), x, net(x).argmax(1), 10)
    (record,) = run(target, EXPERT)
    assert (record.status, record.detail) == ("ok", "")
    assert record.agreement is not None
    assert record.agreement.flipped_signs < 0.2
    assert record.compile_s is not None
    assert record.p50_s is not None
    # Compiled before it is timed, and only then.
    assert record.compile_s > 2 * record.p50_s
    again = EXPERT.make(target, dataclasses.replace(SETTING, steps=1))
    again(target.x, target.y)
    assert again.compile_s == record.compile_s  # type: ignore[attr-defined]


def test_aims_are_told_as_ratios_and_change_no_status() -> None:
    """Of full networks in bf16 alone."""
    bf16 = Record("bf16", "engine", "bf16", "", over_best_peer=1.5, share_of_matmul=0.4)
    case = Case("wrn32-10", None, 1, "", [128, 3, 32, 32], 10, 1.0, "plain-loop", [bf16], [])
    assert tables.aims(case) == [
        "bf16: 1.50 × the best peer (on an H100: aim 2.9 ×)",
        "bf16: 40.0% of the matmul rate (aim 52%)",
    ]
    assert tables.aims(dataclasses.replace(case, width=8)) == []
    assert tables.aims(dataclasses.replace(case, steps=2)) == []
    assert tables.aims(dataclasses.replace(case, records=[])) == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--only", "nobody"], "nobody"),
        (["--models", "vgg"], "vgg"),
        (["--cases", "vgg:8"], "vgg:8"),
        (["--cases", "resnet18:0"], "resnet18:0"),
        (["--cases", "resnet18:8", "--models", "resnet18"], "no --models"),
        (["--rounds", "0"], "rounds"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--survivors", "--models", "resnet18"], "resnet18"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--device", "cpu"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_checkpoint_without_data_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--survivors", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main(argv) == 2
    assert "IAAT_FAST_DATA" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def levers_of(contender: Contender, device: str) -> tuple[dict[str, bool], str]:
    """The levers of speed that a contender pulls on a device, and its precision."""
    known = contender.make.keywords  # type: ignore[attr-defined]
    resolved = options.resolve_engine(known["engine"], known["precision"])
    idle = (*NOT_SPEED, *(["graph"] if device == "cpu" else []))
    pulled = {k: v for k, v in dataclasses.asdict(resolved).items() if k not in idle}
    return pulled, known["precision"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("with_compile", [False, True])
def test_each_rung_of_the_ladder_pulls_one_lever_more(device: str, with_compile: bool) -> None:
    rungs = ladder(torch.device(device), with_compile=with_compile)
    first, precision = levers_of(rungs[0].contender, device)
    assert (any(first.values()), precision) == (False, "fp32")
    for lower, upper in itertools.pairwise(rungs):
        before, after = levers_of(lower.contender, device), levers_of(upper.contender, device)
        changed = [name for name in before[0] if before[0][name] != after[0][name]]
        changed += [after[1]] if before[1] != after[1] else []
        assert changed == [upper.adds]
    last, _ = levers_of(rungs[-1].contender, device)
    assert last == {**levers_of_fast(device), "compile": with_compile}
    names = [c.name for c in engines(torch.device(device), tf32=True, with_compile=with_compile)]
    assert len(names) == len(set(names))
    assert {rung.contender.name for rung in rungs} <= set(names)


def levers_of_fast(device: str) -> dict[str, bool]:
    idle = (*NOT_SPEED, *(["graph"] if device == "cpu" else []))
    return {k: v for k, v in dataclasses.asdict(EngineOptions()).items() if k not in idle}


def test_random_networks_tell_images_apart_and_have_batch_norm_to_fold(target: Target) -> None:
    many = images.smooth_noise(64, 32)
    with torch.no_grad():
        classes = target.model(many).argmax(1)
    assert len(classes.unique()) >= 4
    norms = [m for m in target.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 0.01
        assert norm.weight.std() > 0.05 * norm.weight.mean()


def test_survivors_have_the_verdicts_of_the_plain_loop() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    x = images.smooth_noise(48, 32).mul(255).round().div(255)
    with torch.no_grad():
        # A margin on top, or every image falls to the first restart and there is nothing to compare.
        net[3].weight *= 3
        y = net(x).argmax(1)
    restarts = survivors.Restarts(net, x, y, Setting(eps=1 / 255, alpha=0.5 / 255, steps=3), 3, 20)
    records = survivors.measure(restarts, rounds=1)
    by_name = {record.name: record for record in records}
    plain = by_name[survivors.PLAIN]
    assert 0 < plain.robust < 1
    for name in ("PGD, survivors", "robust_accuracy"):
        assert (by_name[name].same_verdicts, by_name[name].missed) == (1, 0)
        assert by_name[name].gradients < 1
    assert by_name[survivors.EARLY].missed == 0
    assert by_name[survivors.EARLY].robust <= plain.robust
