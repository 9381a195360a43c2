"""Around the commands: errors before they begin, closed pipes, and what their errors call things."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iaat_fast import entry
from iaat_fast.command_line import refuse, with_flags
from iaat_fast.train.cli import parse
from iaat_fast.train.flags import FLAGS, own_flags


def closed_pipe() -> int:
    """The writing end of a pipe that nothing reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
def test_a_backend_that_cannot_be_had_is_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "iaat_fast.evaluate", "--help"],  # imports torch before its __main__
        env={**os.environ, "IAAT_FAST_BACKEND": "cuda"},
        capture_output=True,
        text=True,
    )
    expected = "error: IAAT_FAST_BACKEND='cuda': expected one of native, triton, reference\n"
    assert (ended.returncode, ended.stderr) == (2, f"iaat_fast: {expected}")


def test_another_programs_hook_for_exceptions_stays(tmp_path: Path) -> None:
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("import iaat_fast\n")
    (package / "__main__.py").write_text(
        "import sys\nassert sys.excepthook is sys.__excepthook__\n"
    )
    subprocess.run([sys.executable, "-m", "theirs"], cwd=tmp_path, check=True)


def test_so_it_is_where_the_commands_package_imports_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(name: str) -> None:
        raise ImportError("IAAT_FAST_BACKEND=triton on cpu: is Triton installed?")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(SystemExit) as ended:
        entry.start("train", interrupted="")
    assert ended.value.code == 2
    expected = (
        "python -m iaat_fast.train: error: IAAT_FAST_BACKEND=triton on cpu: is Triton installed?\n"
    )
    assert capsys.readouterr().err == expected


@pytest.mark.slow
def test_a_pipe_that_nothing_reads_ends_a_command_silently(tmp_path: Path) -> None:
    output = closed_pipe()
    ended = subprocess.run(
        [sys.executable, "-m", "iaat_fast.plan", "--help"],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(output)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_only_a_pipe_of_the_output_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refuse("prog", BrokenPipeError(32, "Broken pipe"), {}) == 2
    assert capsys.readouterr().err == "prog: error: Broken pipe\n"
    monkeypatch.setattr(entry, "OUTPUTS", (closed_pipe(),))
    with pytest.raises(BrokenPipeError):
        refuse("prog", BrokenPipeError(32, "Broken pipe"), {})


def test_an_interrupt_while_a_package_imports_torch_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    entry.explain_early_errors()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted\n"
    sys.excepthook(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.epochs: 0, expected", "--epochs: 0, expected"),
        ("run: optim.lr (1 there), data.name", "run: --lr (1 there), --dataset"),
        ("evaluation.eps: 2, expected attack.bn", "--eval-eps: 2, expected --bn"),
        ("device: 'x', expected", "--device: 'x', expected"),
        ("path a/b: no such folder", "--data a/b: no such folder"),
        ("limit: expected", "--limit: expected"),
        ("a limit: expected", "a limit: expected"),
        ("runs/optim.epochs/x: missing", "runs/optim.epochs/x: missing"),
        ("run/config.json: optim.epochs: 0", "run/config.json: optim.epochs: 0"),
    ],
)
def test_errors_of_commands_name_flags(text: str, expected: str) -> None:
    assert with_flags(text, FLAGS) == expected


RUN = (
    "--width 8 --limit 2000 --eval-eps 12.75 --decay-epochs 2 4 --no-augment --steps 3 --data a.npz"
)


@pytest.mark.parametrize("method", ["adv", "clean"])
def test_a_runs_own_flags_make_its_configuration_again_under_another_method(method: str) -> None:
    given = "--gamma 5 --beta 0.2 --seed 3 --protocol released --out run --no-tensorboard"
    config = parse(["cifar10-resnet18", *RUN.split(), *given.split()]).config
    words = own_flags(config, method)
    assert not {"--out", "--method", "--gamma", "--beta", "--eps"} & {*words}
    assert ("--steps" in words) == (method != "clean")
    again = parse(["cifar10-resnet18", "--method", method, *words]).config
    for part in ("data", "model", "optim", "evaluation"):
        assert getattr(again, part) == getattr(config, part)
    assert (again.protocol, again.run.seed, again.run.tensorboard) == ("released", 3, False)


def test_the_flags_of_fast_runs_leave_to_the_hardware_what_it_chose() -> None:
    config = parse(["digits", "--fast", "--engine", "fast"]).config
    assert own_flags(config, "adv") == ["--engine", "fast", "--fast"]
    assert own_flags(parse([]).config, "adv") == []
