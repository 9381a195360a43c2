"""`python -m iaat_fast.evaluate`: table, JSON, a user's own model, and one line for what is wrong."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from iaat_fast import data, models
from iaat_fast.evaluate import accuracy, read_record, robust_accuracy
from iaat_fast.evaluate.cli import main
from iaat_fast.evaluate.record import rounded
from iaat_fast.evaluate.results import wilson
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import load_tensors
from tests.forked import Forked, wait_until


def evaluate(*words: object) -> int:
    return main([str(word) for word in words])


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_measured_with_its_own_settings(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run) == 0
    out, err = capsys.readouterr()
    assert err == ""

    model = models.build("digits-cnn", width=4)
    model.load_state_dict(RunFolder(run).checkpoint()["model"])
    test = data.load("digits", limit=200).test
    natural = accuracy(model, test)
    attack = {"eps": 51 / 255, "alpha": 12.75 / 255, "steps": 3, "restarts": 2}
    robust = robust_accuracy(model, test, **attack)
    assert natural > 0.8
    assert 0 < robust.accuracy < natural

    kept = run / "evaluation" / "digits-200-pgd3x2-eps51-alpha12.75-seed0"
    assert list((run / "evaluation").iterdir()) == [kept]
    content, verdicts = read_record(kept)
    assert (content["suite"], content["complete"]) == ("pgd", True)
    natural_row, row = content["measurements"]
    assert natural_row["accuracy"] == natural
    assert np.array_equal(verdicts[row["key"]], robust.correct.numpy())
    assert {name: row[name] for name in attack} == attack
    assert row["accuracy"] == robust.accuracy
    assert row["correct"] == int(robust.correct.sum())

    assert "PGD-3 × 2 at ε = 51/255" in out
    assert f"{natural:.2%}" in out
    assert f"{robust.accuracy:.2%}" in out


def test_the_json_says_what_was_measured_and_how(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    line = "--eps 2 8 --alpha 1 --steps 2 --restarts 1 --limit 50 --batch-size 20 --seed 3"
    assert evaluate(run, *line.split(), "--device", "cpu", "--json", file) == 0

    written = json.loads(file.read_text())
    assert written["schema"] == 1
    assert written["run"] == str(run)
    assert written["epoch"] == 7
    assert written["model"] == {"name": "digits-cnn", "width": 4, "depth": None}
    assert written["data"] == {"name": "digits", "path": None, "split": "test", "samples": 50}
    assert written["batch_size"] == 20
    assert written["environment"]["packages"]["torch"] == torch.__version__
    assert written["seed"] == 3
    natural, *robust = written["measurements"]
    assert [row["eps"] for row in robust] == [2 / 255, 8 / 255]
    said = (
        "--eps 2 8: every radius is attacked with the same step, 1/255; for another, evaluate it by"
    )
    assert said in capsys.readouterr().err
    for row in robust:
        assert (row["kind"], row["steps"], row["restarts"]) == ("pgd", 2, 1)
        assert row["alpha"] == 1 / 255
        assert row["gradient_entries"] == 50 * 64 * 2
        assert row["nan_gradient_entries"] == 0
    for row in (natural, *robust):
        low, high = row["interval_95"]
        assert row["samples"] == 50
        assert row["accuracy"] == row["correct"] / 50
        assert 0 <= low <= row["accuracy"] <= high <= 1
    kept = run / "evaluation" / "digits-50-pgd2x1-eps2-8-alpha1-seed3"
    assert read_record(kept)[0] == written


def test_the_interval_is_wilsons() -> None:
    # 8 of 10, from Wilson (1927) by hand: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    z, p, n = 1.959963984540054, 0.8, 10
    middle, spread = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(middle + sign * spread) / (1 + z**2 / n) for sign in (-1, 1)]
    assert wilson(8, 10) == pytest.approx(expected)
    for correct in range(41):
        whole = binomtest(correct, 40).proportion_ci(0.95, method="wilson")
        low, high = wilson(correct, 40)
        assert (low, high) == pytest.approx((whole.low, whole.high))
        assert low <= correct / 40 <= high


def test_an_interval_lies_round_a_mean_of_counts_that_is_no_whole_number() -> None:
    low, high = wilson(17.4, 40)
    assert wilson(17, 40)[0] < low < 17.4 / 40 < high < wilson(18, 40)[1]


def test_what_took_time_did_not_take_0_seconds() -> None:
    assert [rounded(s) for s in (0.0, 0.000123456, 0.0123456, 12.3456789)] == [
        *(0.0, 0.000123, 0.0123, 12.346)
    ]


def test_attacks_that_differ_in_one_setting_are_kept_apart(run: Path) -> None:
    """The last word of a line is all that tells it from the first."""
    common = "--limit 20 --eps 51 --steps 2 --restarts 1 --device cpu"
    changes = ["", "--alpha 3", "--seed 1", "--targeted random", "--any-iterate", "--restarts 2"]
    for change in changes:
        assert evaluate(run, *common.split(), *change.split()) == 0
    assert len(list((run / "evaluation").glob("*/results.json"))) == len(changes)


@pytest.mark.parametrize("change", ["--seed 1", "--targeted random", "--alpha 3", "--any-iterate"])
def test_a_folder_of_another_attack_is_refused_and_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    common = f"--limit 20 --steps 2 --restarts 1 --out {tmp_path / 'out'} --device cpu"
    assert evaluate(run, *common.split()) == 0
    before = snapshot(tmp_path / "out")
    assert "made with another" in one_line_error(capsys, run, *common.split(), *change.split())
    assert snapshot(tmp_path / "out") == before
    assert evaluate(run, *common.split(), *change.split(), "--overwrite") == 0


def test_a_model_of_the_package_is_attacked_with_weights_from_a_file(
    run: Path, tmp_path: Path
) -> None:
    state = load_tensors(run / "checkpoint.pt")["model"]
    weights, file = tmp_path / "w.pt", tmp_path / "r.json"
    torch.save({"state_dict": {f"module.{name}": v for name, v in state.items()}}, weights)
    own = f"--model digits-cnn --width 4 --weights {weights} --dataset digits --limit 200"
    attack = "--eps 51 --alpha 12.75 --steps 3 --restarts 2"
    assert evaluate(*own.split(), *attack.split(), "--json", file) == 0
    assert evaluate(run) == 0
    (kept,) = (run / "evaluation").iterdir()
    of_run, of_file = read_record(kept)[0], json.loads(file.read_text())
    correct = [[row["correct"] for row in c["measurements"]] for c in (of_run, of_file)]
    assert correct[0] == correct[1]
    assert of_file["run"] is None


OWN_MODEL = """
import torch
from pathlib import Path
from torch import nn

class Net(nn.Sequential):
    calls = 0

    def forward(self, x):
        Net.calls += 1
        if Net.calls == 10:
            Path("under-attack").touch()
        return super().forward(x)

def make():
    torch.manual_seed(0)
    return Net(nn.Flatten(), nn.Linear(64, 10))

def broken():
    raise RuntimeError("no GPU\\nhere")

def coloured():
    return nn.Conv2d(3, 10, 8)
"""


@pytest.mark.slow
def test_a_users_own_model_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    (tmp_path / "out.json").write_text("old")
    line = "--model mine:make --dataset digits --limit 20 --steps 2 --eps 8 --json out.json"
    done = Forked("iaat_fast.evaluate", *line.split(), cwd=tmp_path)
    out, err = done.communicate()
    assert (done.returncode, err) == (0, "")
    assert "PGD-2 × 5 at ε = 8/255" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["model"]["name"] == "mine:make"
    assert written["measurements"][1]["samples"] == 20
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_under_attack_it_leaves_no_file(
    tmp_path: Path, signum: signal.Signals, status: int
) -> None:
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    line = "--model mine:make --dataset digits --steps 10000000 --json out.json"
    running = Forked("iaat_fast.evaluate", *line.split(), cwd=tmp_path)
    try:
        wait_until((tmp_path / "under-attack").exists, running)
        running.send_signal(signum)
        _, err = running.communicate()
    finally:
        running.kill()
    assert running.returncode == status
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in err
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"mine.py", "under-attack"}


def test_fractions_are_read_and_numbers_of_the_unit_scale_warned_of(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--steps 1 --restarts 1 --limit 2 --device cpu"
    assert evaluate(run, *f"--eps 8/255 --alpha 1/255 {line}".split()) == 0
    out, err = capsys.readouterr()
    assert "PGD-1 × 1 at ε = 8/255" in out
    assert not err
    assert evaluate(run, *f"--eps 0.03 --alpha 0.01 {line}".split()) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"python -m iaat_fast.evaluate: warning: {flag}: {value}/255, since numbers are in units of 1/255; "
        f"if {value} of the range of the pixels was meant, that is {units}"
        for flag, value, units in (("--eps", "0.03", "7.65"), ("--alpha", "0.01", "2.55"))
    ]


def one_line_error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The error of a command line that must fail with status 2 and exactly one line."""
    assert evaluate(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("python -m iaat_fast.evaluate: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--epss 8", "--epss: unknown flag, did you mean '--eps'?"),
        ("--restart 5", "did you mean '--restarts'?"),
        ("--eps", "--eps: expected one or several numbers"),
        ("--eps eight", "--eps: 'eight', expected a number of units of 1/255"),
        ("--eps 8/0", "--eps: '8/0', expected a number of units of 1/255"),
        ("--eps -1", "--eps: -1/255, expected 0 to 255"),
        ("--eps 8 300", "--eps: 300/255, expected 0 to 255"),
        ("--eps nan", "--eps: nan/255, expected 0 to 255"),
        ("--alpha 0", "--alpha: 0/255, expected above 0"),
        ("--alpha two", "--alpha: 'two', expected N/255"),
        ("--steps 0", "--steps: 0, expected at least 1"),
        ("--steps 1.5", "--steps: '1.5', expected INT"),
        ("--restarts 0", "--restarts: 0, expected at least 1"),
        ("--seed -1", "--seed: -1, expected at least 0"),
        ("--limit 0", "--limit: 0, expected at least 1"),
        ("--batch-size 0", "--batch-size: 0, expected at least 1"),
        ("--device tpu", "device: 'tpu'"),
        ("--weights w.pt", "--weights: a run folder has its own"),
        ("--width 3", "--width: a run folder has its own"),
        ("--model resnet17", "did you mean 'resnet18'?"),
        ("--model resnet18", "does not fit the model"),
        ("--dataset cifar11", "did you mean 'cifar10'?"),
        ("--data nowhere", "nowhere: no such folder"),
        ("--json no-such-folder/out.json", "there is no folder no-such-folder"),
        ("--json .", "is a folder, expected a file"),
    ],
)
def test_a_bad_flag_is_answered_in_one_line_and_the_run_is_left_alone(
    run: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    before = snapshot(run)
    assert message in one_line_error(capsys, run, *line.split())
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected a run folder RUN, or --model with --weights"),
        ("no-such-run", "no-such-run: no such run folder"),
        ("--model resnet18", "--weights: expected the file with the weights of resnet18"),
        ("--model resnet18 --weights gone.pt", "gone.pt: no such file of weights"),
        ("--model resnet19 --weights gone.pt", "did you mean 'resnet18'?"),
        ("--model no.module:make", "importing no.module failed"),
        ("--model mine:absent --dataset digits", "has no 'absent'"),
        ("--model mine:broken --dataset digits", "--model mine:broken: RuntimeError: no GPU here"),
        ("--model mine:make --width 3", "--width and --depth are for"),
        ("--model mine:coloured --dataset digits", "does not take images of shape [1, 1, 8, 8]"),
    ],
)
def test_a_bad_model_is_answered_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    (tmp_path / "mine.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert message in one_line_error(capsys, *line.split())


class Evil:
    """Unpickling this would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_damaged_or_unsafe_checkpoint_is_refused_and_never_executed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = run / "checkpoint.pt"
    whole = checkpoint.read_bytes()

    for size in (len(whole) // 2, 100, 0):
        checkpoint.write_bytes(whole[:size])
        assert "checkpoint.pt: not a readable" in one_line_error(capsys, run)
    checkpoint.unlink()
    assert "no checkpoint there yet" in one_line_error(capsys, run)

    torch.save({"model": Evil()}, checkpoint)
    assert "checkpoint.pt: refused" in one_line_error(capsys, run)
    weights = ("--model", "resnet18", "--weights", checkpoint)
    assert "checkpoint.pt: refused" in one_line_error(capsys, *weights)
    assert not (tmp_path / "executed").exists()

    checkpoint.write_bytes(whole)
    (run / "config.json").write_text('{"model": {}')
    assert "config.json: not readable as JSON" in one_line_error(capsys, run)
    (run / "config.json").write_text('{"model": 3}')
    assert "config.json: not the configuration of a run" in one_line_error(capsys, run)
    (run / "config.json").unlink()
    assert "config.json: not found" in one_line_error(capsys, run)


def test_of_a_damaged_checkpoint_the_one_before_it_is_measured_and_that_is_said_in_a_line(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = run / "checkpoint.pt"
    (run / "checkpoint-previous.pt").write_bytes(checkpoint.read_bytes())
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert evaluate(run, "--limit", "8", "--json", run / "found.json") == 0
    (said,) = caplog.messages
    assert said.startswith(f"{checkpoint}: ")
    assert "; taking checkpoint-previous.pt, step " in said
    written = json.loads((run / "found.json").read_text())
    assert written["weights"] == str(run / "checkpoint-previous.pt")


def test_a_run_of_a_model_from_python_asks_for_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"] = {"name": "custom", "width": None, "depth": None}
    (run / "config.json").write_text(json.dumps(config))
    assert "--model package.module:function" in one_line_error(capsys, run)

    factory = 'from iaat_fast import models\ndef f(): return models.build("digits-cnn", width=4)\n'
    (tmp_path / "given_model.py").write_text(factory)
    monkeypatch.syspath_prepend(tmp_path)
    assert evaluate(run, "--model", "given_model:f") == 0

    config["data"] = {"name": "custom", "path": None, "limit": None}
    (run / "config.json").write_text(json.dumps(config))
    assert "--dataset and --data" in one_line_error(capsys, run, "--model", "given_model:f")
    assert evaluate(run, "--model", "given_model:f", "--dataset", "digits", "--limit", 20) == 0


def test_help_needs_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--eps N/255", "--steps", "--restarts", "--alpha", "--limit", "--json", "--model"):
        assert flag in text
    assert "None" not in text
