"""The commands' help: examples first, which are valid, and nothing wider than the terminal."""

from __future__ import annotations

import importlib

import pytest

from iaat_fast.entry import COMMANDS


def shown(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(f"iaat_fast.{command}.cli").main(["--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_three_examples_first_and_fits_into_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(command, capsys)
    usage, examples, *_ = text.split("\n\n")
    assert usage.startswith(f"usage: python -m iaat_fast.{command} ")
    assert examples.startswith("Examples:\n")
    assert examples.count(f"  python -m iaat_fast.{command}") == 3
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "\n\n\n" not in text
    assert " --version " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_arguments_of_every_example_are_valid(command: str) -> None:
    cli = importlib.import_module(f"iaat_fast.{command}.cli")
    parse = cli.parse if command in ("train", "sweep") else cli._tyro
    assert len(cli.EXAMPLES) == 3
    for words, _ in cli.EXAMPLES:
        if "--resume" in words:  # there is no such run
            words = words.replace("--resume", "")
        parse(words.split())
