"""The command line `python -m iaat_fast.sweep`: from a grid to finished run folders and their table."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import arg

from iaat_fast import command_line, units
from iaat_fast.command_line import Help, PixelList, UsageError, optional, warn
from iaat_fast.entry import prog
from iaat_fast.environment import resolve_device
from iaat_fast.evaluate import cli as evaluate
from iaat_fast.methods import COMPARED
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import check_folder
from iaat_fast.sweep.display import Display, jobs_table, runs_table
from iaat_fast.sweep.driver import Outcome, drive
from iaat_fast.sweep.folder import SweepFolder
from iaat_fast.sweep.grid import Grid, Run, Warmup
from iaat_fast.sweep.jobs import Suite, as_typed, is_trained, plan
from iaat_fast.sweep.launchers import Launcher, LocalLauncher
from iaat_fast.sweep.slurm import SubmititLauncher, parse_parameters
from iaat_fast.train.flags import FLAGS

PROG = prog("sweep")
DESCRIPTION = """Train and evaluate a grid of runs: methods x radii x seeds.

Every run has a folder of its own below --out, named after its point of the grid. Finished jobs are \
skipped, and killed ones continue from their last checkpoint: the same command again continues \
a sweep, and with more methods, radii or seeds it extends one. Another configuration in the same \
--out is refused.

Flags after a -- are passed to python -m iaat_fast.train (those that only some methods read, to \
these methods only), flags after a second -- to python -m iaat_fast.evaluate: ... --out DIR --suite cifar \
-- --epochs 10 --width 16 -- --parts natural pgd

N/255 is in units of 1/255, as in the paper's tables: --eps 1 2 4 8 are radii of 1/255 to 8/255, and so are fractions \
such as 8/255.

Exit status: 0 all jobs are done; 1 some failed; 2 bad usage or bad input, with one line on \
standard error and nothing started; 130 after Ctrl-C and 143 after SIGTERM, with the state of all \
jobs saved."""
EXAMPLES = (
    ("digits --out sweeps/digits", "one run of each method on the digits"),
    (
        "cifar10-resnet18 --out sweeps/cifar --methods adv --eps 2 4 8",
        "adversarial training at three radii, a run of each",
    ),
    (
        "digits --out sweeps/digits --seeds 0 1 2 --suite quick --report",
        "three seeds of each method, evaluated, and a page of the results",
    ),
)
HELP = Help(PROG, DESCRIPTION, EXAMPLES)

SAVE_S = 60.0
"""Seconds that jobs of a killed sweep get to save their state, before the next sweep is refused."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A sweep."""

    preset: tyro.conf.Positional[Annotated[str, arg(metavar="[PRESET]")]] = "digits"
    """Preset of all runs, see python -m iaat_fast.train."""
    out: Path
    """Folder of the sweep."""
    methods: tuple[str, ...] = COMPARED
    """Training methods."""
    eps: Annotated[PixelList, optional("N/255 [N/255 ...]", "the preset's")] = ()
    """Radii of the methods that train at a fixed radius, one run for each."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, one run for each."""
    warmup: Warmup = "on"
    """iaat with its warm-up, without it, or a run of each."""
    data: Annotated[str | None, optional("PATH", "where training looks for it")] = None
    """Folder that holds the data set, or an .npz with x_train, y_train, x_test, y_test."""
    suite: Annotated[str | None, optional("SUITE", "the closing evaluation of training only")] = (
        None
    )
    """Evaluate every run by this suite: quick, cifar or imagenet. The transfer attacks of cifar are
    crafted on the run of another seed, if there is one."""
    launcher: Literal["local", "submitit"] = "local"
    """Processes on this machine, or jobs of a SLURM cluster."""
    jobs: Annotated[int | None, optional("INT", "1, or all with submitit")] = None
    """Jobs at once. Local jobs share the cores, and the GPUs if there are several."""
    slurm: tuple[str, ...] = ()
    """KEY=VALUE ... for submitit: partition=gpu gpus_per_node=1 cpus_per_task=8 timeout_min=600."""
    cluster: Literal["slurm", "local"] = "slurm"
    """Where submitit starts the jobs; local: on this machine, for a test."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List the jobs with their state and command, and start none."""
    report: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """At the end, write tables, figures and a page over the runs to OUT/report (python -m iaat_fast.report)."""


def parse(argv: Sequence[str]) -> tuple[Command, Grid, Suite | None]:
    """The command that the arguments ask for, its grid and its suite.

    Raises:
        UsageError: bad arguments.
        ValueError: an unknown preset, method or value (the message names the nearest).
        FileNotFoundError: there are no data at --data.
        SystemExit: with status 0, after --help was printed.
    """
    words, training, evaluation = _divided(argv)
    command = command_line.parse(_tyro, words, HELP)
    grid = Grid(
        preset=command.preset,
        methods=command.methods,
        eps=command.eps,
        seeds=command.seeds,
        warmup=command.warmup,
        data=command.data,
        flags=training,
    )
    suite = None if command.suite is None else Suite(name=command.suite, flags=evaluation)
    if suite is None and evaluation:
        raise UsageError(f"{evaluation[0]}: after the second --, expected a --suite that it is for")
    # Parsed here so that an unknown flag is reported before the trainings.
    command_line.parse(_evaluation, ["RUN", *evaluation], evaluate.HELP)
    if command.jobs is not None and command.jobs < 1:
        raise UsageError(f"--jobs: {command.jobs}, expected at least 1")
    if command.launcher == "local" and command.slurm:
        raise UsageError("--slurm: for --launcher submitit only")
    if command.data is not None and not Path(command.data).exists():
        raise FileNotFoundError(f"--data {command.data}: no such file or folder")
    return command, grid, suite


def _divided(argv: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The arguments before, between and after the first two --."""
    parts: list[list[str]] = [[]]
    for word in argv:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    if len(parts) > 3:
        raise UsageError(
            "--: given more than twice, expected flags of training, then of evaluation"
        )
    words, training, evaluation = (tuple(part) for part in (*parts, [], [])[:3])
    return words, training, evaluation


def _tyro(argv: Sequence[str]) -> Command:
    return tyro.cli(Command, prog=PROG, description="", args=list(argv))


def _evaluation(argv: Sequence[str]) -> evaluate.Command:
    return tyro.cli(evaluate.Command, args=list(argv))


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    try:
        command, grid, suite = parse(argv)
        for eps in command.eps:
            warn(PROG, units.too_small("--eps", eps, units.SMALL_RADIUS))
        return _sweep(command, grid, suite, argv, Console())
    except command_line.REFUSALS as error:
        return command_line.refuse(PROG, error, FLAGS)


def _sweep(
    command: Command, grid: Grid, suite: Suite | None, argv: Sequence[str], console: Console
) -> int:
    folder = SweepFolder(command.out)
    runs = grid.runs(folder.path)
    everything = folder.extended(runs)
    jobs = plan(runs, everything, suite=suite)
    if command.dry_run:
        jobs_table(jobs, console)
        return 0
    _check_launcher(command, runs)
    check_folder("--out", folder.path)
    with folder.lock(SAVE_S, say=console.print) as lock:
        # Planned again, since another sweep may have been at work here until now.
        everything = folder.extended(runs)
        jobs = plan(runs, everything, suite=suite)
        folder.record(everything)
        launcher = _launcher(command, folder, jobs=len(jobs), lock=lock)
        outcome = drive(jobs, launcher, folder.logs_dir, Display(console))
    console.print(runs_table(everything, jobs))
    if outcome.signum is not None:
        again = as_typed([sys.executable, "-m", "iaat_fast.sweep", *argv])
        print(f"stopped, the state of all jobs is saved; continue with {again}", file=sys.stderr)
        return 128 + outcome.signum
    return _close(command, everything, outcome, console)


def _check_launcher(command: Command, runs: Sequence[Run]) -> None:
    """Raise if jobs cannot be started, before a file of the sweep is written."""
    if command.launcher == "local":
        resolve_device(runs[0].config.run.device)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _submitit(command, Path(scratch), slots=1)


def _launcher(command: Command, folder: SweepFolder, *, jobs: int, lock: int) -> Launcher:
    if command.launcher == "local":
        return LocalLauncher(min(command.jobs or 1, jobs), lock=lock)
    return _submitit(command, folder.logs_dir / "submitit", slots=command.jobs or jobs)


def _submitit(command: Command, folder: Path, *, slots: int) -> SubmititLauncher:
    parameters = parse_parameters(command.slurm)
    return SubmititLauncher(folder, slots, parameters=parameters, cluster=command.cluster)


def _close(command: Command, runs: Sequence[Run], outcome: Outcome, console: Console) -> int:
    """Print what failed, and write the report or print its command; returns the exit status."""
    for name, line in outcome.failed.items():
        print(f"{name} failed: {line}", file=sys.stderr)
    for name, before in outcome.blocked.items():
        print(f"{name} not started: {before} failed", file=sys.stderr)
    status = 1 if outcome.failed else 0
    trained = [str(run.folder) for run in runs if is_trained(RunFolder(run.folder))]
    if not trained:
        return status
    report = [
        sys.executable,
        "-m",
        "iaat_fast.report",
        *trained,
        "--out",
        str(command.out / "report"),
    ]
    if command.report:
        return max(status, subprocess.run(report, check=False).returncode)
    console.print(f"next\n  {as_typed(report)}", highlight=False, soft_wrap=True, markup=False)
    return status
