"""The command line `python -m iaat_fast.report`: run folders to a Markdown table, or to a whole report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from iaat_fast import command_line
from iaat_fast.command_line import optional
from iaat_fast.files import check_folder
from iaat_fast.report.build import build_report
from iaat_fast.report.comparison import read_run, summary_table
from iaat_fast.run_folder import RunFolder

PROG = "python -m iaat_fast.report"
DESCRIPTION = """Compare finished runs: one Markdown row per method, mean ± standard deviation over \
seeds. Runs must agree in everything but the seed, the method and the fields of its attack and radii.

With --out DIR: the tables and figures of the paper, as far as the runs have them, as files and on one \
page, DIR/index.html. Runs may then be on several data sets and networks; those of one table must have \
been measured alike.

Exit status: 0 done; 2 bad usage, bad input or a failed write, with one line on standard error; \
130 after Ctrl-C."""


@dataclass(frozen=True)
class Command:
    """A comparison."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Annotated[Path | None, optional("DIR", "print a table only")] = None
    """Folder of the report; of one that exists only what an earlier report wrote is replaced."""
    evaluation: Annotated[
        str | None, optional("NAME", "the complete one with the most samples")
    ] = None
    """With --out: the folder below evaluation/ of each run to report, such as cifar-cifar10-10000-seed0."""
    data: Annotated[str | None, optional("PATH", "where the runs found them")] = None
    """With --out: folder or .npz of the training images, for the galleries."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        command = command_line.parse(_tyro, argv)
        if command.out is None:
            for name in ("evaluation", "data"):
                if getattr(command, name) is not None:
                    raise ValueError(f"--{name}: belongs to a report, give --out too")
            print(summary_table([read_run(RunFolder(path)) for path in command.runs]))
            return 0
        check_folder("--out", command.out)
        report = build_report(
            command.runs, command.out, evaluation=command.evaluation, data=command.data
        )
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, command_line.flags_of(Command))
    for text in report.missing:
        print(f"{PROG}: warning: {text}", file=sys.stderr)
    counts = [
        f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
        for what, names in (("table", report.tables), ("figure", report.figures))
    ]
    print(f"{', '.join(counts)}: {report.page}")
    return 0


def _tyro(argv: Sequence[str]) -> Command:
    return tyro.cli(Command, prog=PROG, description=DESCRIPTION, args=list(argv))
