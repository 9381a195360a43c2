"""`iaat-fast` and `python -m iaat_fast`: the list, the versions, what is missing, and names that are there on use."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import iaat_fast
from iaat_fast import __main__, entry
from iaat_fast.command_line import refuse
from iaat_fast.train.cli import main as train

SCRIPT = "/somewhere/bin/iaat-fast"


def run(code: str) -> str:
    """Standard output of `code` in a fresh interpreter, which must not have imported torch or tyro."""
    code += "\nimport sys\nassert not {'torch', 'tyro', 'numpy'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def called(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", [*argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.getsignal(signal.SIGINT)
    try:
        return __main__.main()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_list_and_the_versions_import_no_torch() -> None:
    command = (
        "import sys; sys.argv = ['iaat-fast', {}]; from iaat_fast.__main__ import main; main()"
    )
    listed = run(command.format("'--help'"))
    assert all(f"\n  {name} " in listed for name in entry.COMMANDS)
    assert max(map(len, listed.splitlines())) <= 80
    versions = {run(command.format(words)) for words in ("'--version'", "'plan', '--version'")}
    assert versions == {f"{entry.versions()}\n"}


def test_the_versions_are_those_of_the_package_torch_and_the_backends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", "digits", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        entry.start("plan", interrupted="")
    shown = capsys.readouterr().out
    assert shown.startswith(f"iaat_fast {iaat_fast.__version__}, torch 2.")
    assert shown.endswith("reference\n")


def test_no_command_is_the_list_and_an_unknown_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, SCRIPT) == 0
    assert capsys.readouterr().out.startswith("usage: iaat-fast COMMAND")
    assert called(monkeypatch, SCRIPT, "evalute", "run") == 2
    expected = "iaat-fast: error: 'evalute': unknown command, did you mean 'evaluate'?\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("program", "becomes"),
    [
        (SCRIPT, "iaat-fast plan"),
        ("/packages/iaat_fast/__main__.py", "python -m iaat_fast.plan"),
    ],
)
def test_a_command_is_run_as_python_m_runs_it_and_knows_how_it_was_called(
    program: str, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(
        runpy,
        "run_module",
        lambda name, run_name: seen.append((name, run_name, sys.argv, entry.prog("plan"))),
    )
    monkeypatch.chdir(Path(__file__).parent)
    called(monkeypatch, program, "plan", "digits", "--help")
    assert seen == [("iaat_fast.plan", "__main__", [becomes, "digits", "--help"], becomes)]
    assert (sys.path[0] == str(Path(__file__).parent)) == (program == SCRIPT)


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_without_what_it_needs_a_command_says_in_one_line_what_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in entry.NEEDS[command]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", [command])
    with pytest.raises(SystemExit, match=r"^2$"):
        entry.start(command, interrupted="")
    names = ", ".join(entry.NEEDS[command])
    expected = f"iaat_fast.{command} needs {names}: pip install 'iaat-fast[train]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.slow
def test_the_commands_need_no_other_modules_to_start() -> None:
    code = """
import runpy, sys
from iaat_fast import entry
for module in {*entry.EXTRAS, "triton"}.difference(*entry.NEEDS.values()):
    sys.modules[module] = None
for command in entry.COMMANDS:
    sys.argv = [command, "--help"]
    try:
        runpy.run_module(f"iaat_fast.{command}", run_name="__main__")
    except SystemExit as ended:
        assert ended.code == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_only_some_runs_need_is_one_line_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert train(["--out", str(tmp_path / "run"), "--no-tensorboard"]) == 2
    expected = "embedded in scikit-learn, which is not installed: pip install 'iaat-fast[train]'"
    assert capsys.readouterr().err == f"python -m iaat_fast.train: error: digits: {expected}\n"
    assert not [*tmp_path.iterdir()]


def test_a_module_of_an_extra_that_is_missing_later_is_said_with_its_extra(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = ModuleNotFoundError("No module named 'cv2.x'", name="cv2.x")
    assert refuse("prog", missing, {}) == 2
    expected = "prog: error: needs cv2: pip install 'iaat-fast[corruptions]'\n"
    assert capsys.readouterr().err == expected


def test_the_packages_are_there_on_first_use() -> None:
    assert run("import iaat_fast; print('attacks' in dir(iaat_fast))") == "True\n"
    assert iaat_fast.attacks.PGD.__module__ == "iaat_fast.attacks.pgd"
    with pytest.raises(AttributeError, match="no attribute 'attack'"):
        iaat_fast.attack  # noqa: B018
