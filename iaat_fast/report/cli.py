"""The command line `python -m iaat_fast.report`: from run folders to a Markdown table, or to a whole report."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from iaat_fast import command_line
from iaat_fast.command_line import Help, optional
from iaat_fast.entry import prog
from iaat_fast.report.build import build_report
from iaat_fast.report.summary import read_run, summary_table
from iaat_fast.run_folder import SWEEP_FILES, RunFolder
from iaat_fast.storage import check_folder

PROG = prog("report")
DESCRIPTION = """Compare finished runs: one Markdown row per method, mean ± standard deviation over \
seeds, under the attack at the end of their trainings and later ones by python -m iaat_fast.evaluate. \
Runs must agree in everything except the seed, the method and the fields of its attack and radii. The folder of \
a sweep stands for all runs in it.

With --out DIR: the tables and figures of the paper, as far as the runs allow, as files and on one \
page, DIR/index.html. Runs may then be on several data sets and networks; those of one table must have \
been measured in the same way.

Exit status: 0 done; 2 bad usage, bad input or a failed write, with one line on standard error; \
130 after Ctrl-C."""
EXAMPLES = (
    ("runs/adv runs/iaat", "a table of two runs, as Markdown"),
    ("runs/* --out report", "every table and figure, on the page report/index.html"),
    ("sweeps/cifar --out report", "the same, of all runs of a sweep"),
)
HELP = Help(PROG, DESCRIPTION, EXAMPLES)


@dataclass(frozen=True)
class Command:
    """A comparison."""

    runs: tyro.conf.Positional[
        Annotated[
            tuple[Path, ...],
            tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(at least one)"),
        ]
    ]
    """Run folders, or folders of sweeps for all runs in them."""
    out: Annotated[Path | None, optional("DIR", "print a table only")] = None
    """Folder of the report; in one that exists, only files of an earlier report are replaced."""
    evaluation: Annotated[
        str | None, optional("NAME", "the complete one with the most samples")
    ] = None
    """With --out: the folder below evaluation/ of each run to report, such as cifar-cifar10-10000-seed0."""
    data: Annotated[str | None, optional("PATH", "where the runs found them")] = None
    """With --out: folder or .npz of the training images, for the galleries."""
    transfer: Annotated[tuple[Path, ...], optional("FILE [FILE ...]", "none")] = ()
    """With --out: matrices that iaat_fast.evaluate.TransferMatrix.save wrote, a table each."""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        command = command_line.parse(_tyro, argv, HELP)
        if command.out is None:
            for name in ("evaluation", "data", "transfer"):
                if getattr(command, name) not in (None, ()):
                    raise ValueError(f"--{name}: belongs to a report, give --out too")
            _compare(command.runs)
            return 0
        check_folder("--out", command.out)
        report = build_report(
            run_folders(command.runs),
            command.out,
            evaluation=command.evaluation,
            data=command.data,
            transfer=command.transfer,
        )
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, command_line.flags_of(Command))
    _warn(report.missing)
    counts = [
        f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
        for what, names in (("table", report.tables), ("figure", report.figures))
    ]
    print(f"{', '.join(counts)}: {report.page}")
    return 0


def run_folders(paths: Sequence[Path]) -> list[RunFolder]:
    """The run folders in `paths`: a sweep's folder stands for all runs in it; its other files are skipped.

    Raises:
        FileNotFoundError: there is nothing at a path, or no run in a sweep's folder.
        FileExistsError: a path is neither a run nor a sweep.
    """
    found: list[RunFolder] = []
    for path in paths:
        folder = RunFolder(path)
        if folder.is_run:
            found.append(folder)
        elif _is_sweep(path):
            runs = [run for entry in sorted(path.iterdir()) if (run := RunFolder(entry)).is_run]
            if not runs:
                raise FileNotFoundError(f"{path}: a sweep's folder without a run")
            found += runs
        elif not path.exists():
            raise FileNotFoundError(f"{path}: no such run folder")
        elif not (_is_sweep(path.parent) and path.name in SWEEP_FILES):
            raise FileExistsError(f"{path}: exists and is no run folder (no config.json in it)")
    return found


def _is_sweep(path: Path) -> bool:
    return (path / SWEEP_FILES[0]).is_file()


def _compare(paths: Sequence[Path]) -> None:
    """Print the table of runs; of a sweep, only of the runs that have ended."""
    folders = run_folders(paths)
    ended = [f for f in folders if f.path in paths or f.results_path.is_file()]
    runs = [read_run(folder) for folder in ended]
    print(summary_table(runs))
    _warn(f"{f.path}: left out, its training has not ended" for f in folders if f not in ended)
    _warn(text for run in runs for text in run.left_out)


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        print(f"{PROG}: warning: {text}", file=sys.stderr)


def _tyro(argv: Sequence[str]) -> Command:
    return tyro.cli(Command, prog=PROG, description="", args=list(argv))
