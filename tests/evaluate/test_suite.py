"""Suites: what they measure, their record, and that a stopped evaluation continues as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast import data, models
from iaat_fast.command_line import interpreter
from iaat_fast.evaluate import EvalTarget, Surrogate, evaluate_suite, recount, robust_accuracy
from iaat_fast.evaluate.cli import main
from iaat_fast.evaluate.parts import PARTS
from iaat_fast.evaluate.suites import SUITES
from iaat_fast.run_folder import RunFolder
from tests.evaluate.shorter import INTERRUPTED
from tests.evaluate.shorter import shorter as shorter_suite
from tests.forked import Forked, wait_until

ATTACK: dict[str, Any] = {"eps": [20 / 255], "alpha": 5 / 255}
ATTACK_FLAGS = ("--eps", 20, "--alpha", 5)
LIMIT = 30


def evaluate(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def target(trained_run: Path) -> EvalTarget:
    model = models.build("digits-cnn", width=4)
    model.load_state_dict(RunFolder(trained_run).checkpoint()["model"])
    return EvalTarget.of(model.eval(), data.load("digits", limit=LIMIT).test, dataset="digits")


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """A run of the same configuration and another seed, with other weights."""
    folder = RunFolder(shutil.copytree(run, tmp_path / "other"))
    config = folder.config()
    config["run"]["seed"] = 1
    folder.config_path.write_text(json.dumps(config))
    checkpoint = folder.checkpoint()
    generator = torch.Generator().manual_seed(0)
    for value in checkpoint["model"].values():
        if value.is_floating_point():
            value += 0.02 * torch.randn(value.shape, generator=generator)
    folder.save_checkpoint(checkpoint)
    return folder.path


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks of the suite cifar, with fewer steps: as many attacks, which share their trajectories as well."""
    monkeypatch.setitem(SUITES, "cifar", shorter_suite((10, 5), (20, 5), (40, 2)))


def rows_of(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows by key, without their times."""
    return {row["key"]: {**row, "seconds": None} for row in content["measurements"]}


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def test_every_part_of_a_suite_is_in_the_table_of_parts() -> None:
    for suite in SUITES.values():
        assert {*suite.parts, *suite.on_request} <= set(PARTS) - {"adversarial"}, suite.name


def test_the_suites_are_the_protocols() -> None:
    cifar, imagenet = SUITES["cifar"], SUITES["imagenet"]
    assert cifar.attacks == ((10, 5), (100, 5), (1000, 2))
    assert (cifar.eps, cifar.alpha) == ((8 / 255,), 2 / 255)
    sweep = cifar.attacks_of("eps-sweep")
    assert [one.eps for one in sweep] == [n / 255 for n in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)]
    (transfer,) = cifar.attacks_of("transfer")
    assert transfer.key == "transfer-pgd1000x2-eps8"
    attacks = imagenet.attacks_of("pgd")
    assert [(one.eps, one.steps, one.targeted) for one in attacks] == [
        (n / 255, 1000, "random") for n in (4, 8, 12, 16)
    ]
    assert {one.restarts for one in attacks} == {1}, "the paper names none for ImageNet"
    steps = imagenet.attacks_of("steps-sweep")
    assert {one.eps for one in steps} == {16 / 255}
    assert (steps[0].steps, steps[-1].steps, steps[-1].alpha) == (10, 2000, 1 / 255)


@pytest.mark.slow
@pytest.mark.usefixtures("shorter")
def test_a_record_holds_what_each_measurement_by_itself_gives(
    target: EvalTarget, tmp_path: Path
) -> None:
    told: list[tuple[float, float]] = []
    content = evaluate_suite(
        target,
        "cifar",
        folder=tmp_path / "e",
        parts=["natural", "pgd"],
        **ATTACK,
        tell=lambda name, done, remaining: told.append((done, remaining)),
    )
    assert read(tmp_path / "e") == content
    assert content["complete"]
    assert content["rule"] == "last"
    rows = rows_of(content)
    assert set(rows) == {"natural", "pgd10x5-eps20", "pgd20x5-eps20", "pgd40x2-eps20"}
    verdicts = np.load(tmp_path / "e" / "verdicts.npz")
    for steps, restarts in ((10, 5), (20, 5)):
        alone = robust_accuracy(
            target.model,
            target.split,
            eps=20 / 255,
            alpha=5 / 255,
            steps=steps,
            restarts=restarts,
        )
        row = rows[f"pgd{steps}x{restarts}-eps20"]
        assert np.array_equal(verdicts[row["key"]], alone.correct.numpy())
        assert (row["correct"], row["samples"]) == (int(alone.correct.sum()), LIMIT)
        assert row["interval_95"][0] <= row["accuracy"] <= row["interval_95"][1]
    attacks = [row for row in rows.values() if row["kind"] == "pgd"]
    taken = sum(row["gradients"] for row in attacks)
    assert all(0 < row["correct"] < rows["natural"]["correct"] for row in attacks)
    assert taken < 0.7 * sum(row["gradients_planned"] for row in attacks)
    assert told[-1] == (taken, 0)
    assert not (tmp_path / "e" / "progress.pt").exists()


def test_finished_measurements_are_not_made_again_and_parts_can_be_added(
    target: EvalTarget, tmp_path: Path
) -> None:
    first = evaluate_suite(target, "quick", folder=tmp_path, parts=["natural"], **ATTACK)
    passes: list[int] = []
    hook = target.model.register_forward_pre_hook(lambda *_: passes.append(1))
    again = evaluate_suite(target, "quick", folder=tmp_path, parts=["natural"], **ATTACK)
    hook.remove()
    assert not passes
    assert again["measurements"] == first["measurements"]
    more = evaluate_suite(target, "quick", folder=tmp_path, **ATTACK)
    assert more["measurements"][0] == first["measurements"][0]
    assert set(rows_of(more)) == {"natural", "pgd10x5-eps20"}
    fresh = evaluate_suite(
        target, "quick", folder=tmp_path, parts=["natural"], overwrite=True, **ATTACK
    )
    assert set(rows_of(fresh)) == {"natural"}


@pytest.mark.slow
@pytest.mark.usefixtures("shorter")
def test_an_exception_in_the_middle_of_an_attack_costs_nothing(
    target: EvalTarget, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    x, y = data.fetch(target.split, torch.arange(LIMIT))
    for any_iterate in (False, True):
        options: dict[str, Any] = {**ATTACK, "any_iterate": any_iterate, "batch_size": 16}
        whole = evaluate_suite(target, "cifar", parts=["pgd"], **options)
        folder = tmp_path / str(any_iterate)
        calls, done = 0, []

        def stop(name: str, passes: float, remaining: float) -> None:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise Stop

        while True:
            try:
                content = evaluate_suite(
                    target,
                    "cifar",
                    folder=folder,
                    parts=["pgd"],
                    tell=stop,
                    save_adversarial=True,
                    **options,
                )
                break
            except Stop:
                done.append(len(read(folder)["measurements"]))
                assert (folder / "progress.pt").exists()
                assert not read(folder)["complete"]
        assert len(done) >= 3
        assert rows_of(content) == rows_of(whole)
        assert content["complete"]
        verdicts = np.load(folder / "verdicts.npz")
        files = sorted((folder / "adversarial").iterdir())
        assert [file.stem for file in files] == sorted(rows_of(whole)), "no half-made file stays"
        for file in files:
            x_adv = torch.from_numpy(np.load(file)["x_adv"])
            assert (x_adv - x).abs().max() <= 20 / 255 + 1e-6
            right = (target.model(x_adv).argmax(1) == y).numpy()
            assert np.array_equal(right, verdicts[file.stem])


def test_recount_counts_any_subset(target: EvalTarget, tmp_path: Path) -> None:
    content = evaluate_suite(target, "quick", folder=tmp_path, **ATTACK)
    everyone = recount(tmp_path, np.arange(LIMIT))
    for row in content["measurements"]:
        assert everyone[row["key"]]["interval_95"] == row["interval_95"]
    halves = [recount(tmp_path, half) for half in (np.arange(11), np.arange(LIMIT) >= 11)]
    for row in content["measurements"]:
        assert sum(half[row["key"]]["correct"] for half in halves) == row["correct"]
    for subset in ([], [0, 0], [LIMIT], [-1], [0.5], np.ones(3, bool)):
        with pytest.raises(ValueError, match="subset"):
            recount(tmp_path, subset)


def test_saved_examples_score_on_their_own_model_as_they_were_counted(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--limit", LIMIT, "--batch-size", 16, *ATTACK_FLAGS)
    assert evaluate(run, "--suite", "quick", "--save-adversarial", *common) == 0
    kept = run / "evaluation" / f"quick-digits-{LIMIT}-seed0"
    (file,) = (kept / "adversarial").iterdir()
    assert file.name == "pgd10x5-eps20.npz"
    found = rows_of(read(kept))["pgd10x5-eps20"]
    json_file = tmp_path / "scored.json"
    assert evaluate(run, "--adversarial", file, *common, "--json", json_file) == 0
    scored = rows_of(json.loads(json_file.read_text()))["adversarial-pgd10x5-eps20"]
    assert scored["correct"] == found["correct"]
    assert evaluate(other, "--adversarial", file, *common, "--json", json_file) == 0
    scored = rows_of(json.loads(json_file.read_text()))["adversarial-pgd10x5-eps20"]
    assert scored["correct"] > found["correct"]
    assert scored["crafted_on"]["crafted_on"]["run"] == str(run)
    few = ("--limit", LIMIT - 1, *ATTACK_FLAGS)
    assert "expected examples of the same data set" in refused(
        capsys, run, "--adversarial", file, *few
    )
    words = ("--adversarial", file, *common, "--overwrite")
    assert "lies in what --overwrite removes" in refused(capsys, run, *words)
    file.write_bytes(file.read_bytes()[:1000])
    assert "not a file of saved adversarial examples" in refused(capsys, run, *words[:-1])


def test_transfer_is_crafted_on_the_surrogate(run: Path, other: Path) -> None:
    words = (
        "--suite",
        "quick",
        "--parts",
        "transfer",
        "--limit",
        LIMIT,
        "--against",
        other,
        *ATTACK_FLAGS,
    )
    assert evaluate(run, *words) == 0
    (row,) = read(run / "evaluation" / f"quick-digits-{LIMIT}-seed0")["measurements"]
    assert (row["key"], row["kind"]) == ("transfer-pgd10x5-eps20", "transfer")
    assert row["surrogate"]["run"] == str(other)
    assert row["surrogate"]["seed"] == 1


def start(run: Path, *words: object) -> Forked:
    """An evaluation in a process of its own; returns once it is in the middle of an attack."""
    common = (
        "--suite",
        "cifar",
        "--parts",
        "pgd",
        "--limit",
        LIMIT,
        "--save-every",
        "0.01",
        *ATTACK_FLAGS,
    )
    process = Forked("tests.evaluate.shorter", run, *common, *words)
    before = progress(run)
    wait_until(lambda: progress(run) != before, process)
    return process


def progress(run: Path) -> float:
    file = run / "evaluation" / f"cifar-digits-{LIMIT}-seed0" / "progress.pt"
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_killed_in_the_middle_of_an_attack_it_goes_on_with_the_same_bits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "cifar", INTERRUPTED)
    killed = Path(shutil.copytree(run, tmp_path / "killed"))
    kept = f"evaluation/cifar-digits-{LIMIT}-seed0"
    for signum, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start(killed)
        process.send_signal(signum)
        _, err = process.communicate()
        assert process.returncode == status
        assert not read(killed / kept)["complete"]
        if signum != signal.SIGKILL:
            assert err.count("\n") == 1
            assert f"continue with: {interpreter()} -m iaat_fast.evaluate" in err
    words = ("--suite", "cifar", "--parts", "pgd", "--limit", LIMIT, *ATTACK_FLAGS)
    assert evaluate(killed, *words) == evaluate(run, *words) == 0
    assert rows_of(read(killed / kept)) == rows_of(read(run / kept))
    ours, theirs = (np.load(folder / kept / "verdicts.npz") for folder in (killed, run))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)
    assert not (killed / kept / "progress.pt").exists()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The error of a command line that must fail with status 2 and exactly one line."""
    capsys.readouterr()
    assert evaluate(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--suite cifra", "did you mean 'cifar'?"),
        ("--suite cifar --parts natrual", "did you mean 'natural'?"),
        ("--suite cifar --parts transfer", "transfer: expected a surrogate"),
        ("--suite cifar --steps 10", "--steps: a suite has its own"),
        ("--parts natural", "--parts: belongs to a suite"),
        ("--corruptions gone", "--corruptions: belongs to a suite"),
        ("--suite cifar --eps 300", "--eps: 300/255, expected 0 to 255"),
        ("--suite cifar --save-every 0", "--save-every: 0.0, expected a number > 0"),
        ("--suite quick --eps 51 51", "eps: the same radius twice"),
        ("--suite quick --dataset cifar10", "trained on digits, which does not fit"),
        ("--adversarial gone.npz", "--adversarial gone.npz: no such file"),
        ("--suite cifar --against gone", "gone: no such run folder"),
    ],
)
def test_a_bad_flag_is_answered_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert message in refused(capsys, run, *line.split())
    assert not (run / "evaluation").exists()


def test_a_surrogate_that_is_not_independent_is_refused(
    run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: EvalTarget
) -> None:
    words = ("--suite", "quick", "--limit", LIMIT, "--against")
    assert "is the run itself" in refused(capsys, run, *words, run)
    copy = shutil.copytree(run, tmp_path / "copy")
    assert "has the configuration and seed" in refused(capsys, run, *words, copy)
    config = json.loads((copy / "config.json").read_text())
    config["run"]["seed"] = 5
    (copy / "config.json").write_text(json.dumps(config))
    assert "the model's own weights" in refused(capsys, run, *words, copy)
    config["data"]["name"] = "cifar10"
    (copy / "config.json").write_text(json.dumps(config))
    assert "trained on cifar10, expected digits" in refused(capsys, run, *words, copy)
    for checkpoint in other.glob("checkpoint*.pt"):
        checkpoint.unlink()
    assert "no checkpoint there yet" in refused(capsys, run, *words, other)
    wide = Surrogate(models.build("digits-cnn", width=4, num_classes=12), {})
    with pytest.raises(ValueError, match="has 12 classes, expected 10"):
        evaluate_suite(target, "quick", surrogate=wide)


def test_other_settings_weights_and_versions_are_refused_by_name(
    run: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--suite", "quick", "--parts", "natural", "--limit", LIMIT)
    assert evaluate(run, *words) == 0
    kept = run / "evaluation" / f"quick-digits-{LIMIT}-seed0"
    before = (kept / "results.json").read_bytes()
    assert "another alpha (was 0.05, now" in refused(capsys, run, *words, "--alpha", 3)
    assert "another eps" in refused(capsys, run, *words, "--eps", 3)
    shutil.copy(other / "checkpoint.pt", run / "checkpoint.pt")
    assert "another weights_sha256" in refused(capsys, run, *words)
    assert (kept / "results.json").read_bytes() == before

    (kept / "results.json").write_text(before.decode().replace('"schema": 1', '"schema": 2'))
    assert "written by a newer version (schema 2" in refused(capsys, run, *words)
    config = json.loads((run / "config.json").read_text())
    config["model"]["heads"] = 3
    (run / "config.json").write_text(json.dumps(config))
    assert "newer version, model.heads is unknown" in refused(capsys, run, *words)


def test_damaged_files_are_named_and_the_results_kept(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--suite", "quick", "--limit", LIMIT)
    assert evaluate(run, *words) == 0
    kept = run / "evaluation" / f"quick-digits-{LIMIT}-seed0"
    results, verdicts = (kept / "results.json").read_bytes(), kept / "verdicts.npz"
    whole = verdicts.read_bytes()
    verdicts.write_bytes(whole[: len(whole) // 2])
    assert "verdicts.npz: damaged" in refused(capsys, run, *words)
    verdicts.unlink()
    assert "verdicts.npz: not there" in refused(capsys, run, *words)
    arrays = {"labels": np.zeros(LIMIT, np.int64), "natural": np.zeros(LIMIT, bool)}
    np.savez(verdicts, **arrays)
    assert "natural has 0 correct" in refused(capsys, run, *words)
    verdicts.write_bytes(whole)
    (kept / "progress.pt").write_bytes(b"half")
    assert "progress.pt: not a readable" in refused(capsys, run, *words)
    assert (kept / "results.json").read_bytes() == results
    (kept / "progress.pt").unlink()
    (kept / "results.json").write_text("{}")
    assert "schema None" in refused(capsys, run, *words)
    assert evaluate(run, *words, "--overwrite") == 0
    assert read(kept)["complete"]


def test_a_model_without_a_run_needs_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", "digits-cnn", "--width", 4, "--weights", run / "checkpoint.pt")
    own = (*words, "--dataset", "digits", "--limit", LIMIT, "--suite", "quick")
    assert "--out: expected the folder" in refused(capsys, *own)
    assert evaluate(*own, "--out", tmp_path / "e", "--parts", "natural") == 0
    assert read(tmp_path / "e")["run"] is None
