"""Around the commands: errors before they begin, closed pipes, and what their errors call things."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iaat_fast import entry
from iaat_fast.command_line import again, interpreter, refuse, with_flags
from iaat_fast.sweep.jobs import as_typed
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
        [sys.executable, "-m", "iaat_fast.evaluate", "--help"],
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
    """And ends the process, with the status of Ctrl-C, whatever is being imported."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    written, ended = [], []
    monkeypatch.setattr(os, "write", lambda *words: written.append(words))
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGINT)
    try:
        entry.explain_early_errors()
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (written, ended) == ([(2, b"interrupted\n")], [130])
    sys.excepthook(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err


STARTED = """
import os, signal, sys, types
from iaat_fast import entry
entry.explain_early_errors()
where, signum = sys.argv[1], getattr(signal, sys.argv[2])
signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))

def main(words):
    if where == "in main":
        exec("signal.raise_signal(signum)", globals())  # as in a named tuple, or in what scipy imports
    return 0

def imported(name):
    if where == "in an import":
        try:
            signal.raise_signal(signum)
        except BaseException:
            raise AttributeError("half imported")
    return types.SimpleNamespace(main=main)

entry.importlib.import_module = imported
sys.argv = ["iaat-fast plan"]
entry.start("plan", interrupted="interrupted" if signum == signal.SIGINT else "")
"""


@pytest.mark.parametrize("where", ["in an import", "in main"])
@pytest.mark.parametrize(("signum", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_command_that_is_stopped_has_the_signals_status(
    tmp_path: Path, where: str, signum: str, status: int
) -> None:
    """Not that of a process killed by the signal, nor of what a module lacks whose import was stopped."""
    (tmp_path / "started.py").write_text(STARTED)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    ended = subprocess.run(
        [sys.executable, "-m", "started", where, signum],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    said = "interrupted\n" if signum == "SIGINT" else ""
    assert (ended.returncode, ended.stderr) == (status, said)


@pytest.mark.parametrize("called", ["iaat-fast", "python -m"])
def test_commands_are_named_as_this_one_was_called(
    called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = called == "iaat-fast"
    monkeypatch.setattr(sys, "argv", ["iaat-fast sweep" if script else "sweep/__main__.py"])
    for name in entry.COMMANDS:
        expected = f"iaat-fast {name}" if script else f"{interpreter()} -m iaat_fast.{name}"
        assert again(name) == expected
        assert as_typed([sys.executable, "-m", f"iaat_fast.{name}", "a b"]) == f"{expected} 'a b'"
    assert as_typed([sys.executable, "a b"]) == f"{interpreter()} 'a b'"


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
