"""Every command that the documents show is one that its parser takes: flags, choices and numbers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from benchmarks import figure, registry
from benchmarks.evidence import __main__ as evidence
from iaat_fast import command_line
from tests.docs.snippets import DOCUMENTS, ROOT, commands

SHOWING = [document for document in DOCUMENTS if any(commands(document))]
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)


def check(words: list[str]) -> None:
    """Raises where the command's own parser would refuse the words. Nothing is opened or started."""
    program, *rest = words
    if program == "make":
        assert rest[0] in TARGETS, f"make has no {rest[0]}"
    elif program == "benchmarks":
        if rest[0] == "figure":
            figure.parse(rest[1:])
        elif rest[0] not in ("--list", "NAME"):
            assert rest[0] in (*registry.BENCHMARKS, "all", "NAME|all"), rest[0]
            if "--help" not in rest:
                registry.parse(rest[0], rest[1:])
    elif program == "benchmarks.evidence":
        evidence.parse(rest)
    else:
        name = rest.pop(0) if program == "iaat-fast" else program.removeprefix("iaat_fast.")
        cli = importlib.import_module(f"iaat_fast.{name}.cli")
        if name == "train":
            # It reads the configuration of the run that is resumed.
            cli.parse([word for word in rest if word != "--resume"])
        elif name == "sweep":
            cli.parse(rest)
        else:
            command_line.parse(cli._tyro, rest, cli.HELP)


@pytest.mark.slow
@pytest.mark.parametrize("document", SHOWING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one_that_its_parser_takes(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line, words in commands(document):
        if "..." in words:
            words = words[: words.index("...")]
        try:
            check(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{document.name}:{line}: {' '.join(words)}: {error}", pytrace=False)


def test_a_flag_that_is_not_there_is_noticed() -> None:
    with pytest.raises(ValueError, match="--stepz: unknown flag"):
        check(["iaat_fast.evaluate", "runs/a", "--stepz", "3"])
    with pytest.raises(AssertionError, match="make has no tests"):
        check(["make", "tests"])
