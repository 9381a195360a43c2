"""Trains and evaluates the runs of a grid, in processes as a sweep does; what is done already is not done again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.evidence.grid import Grid, PGDs
from iaat_fast import units
from iaat_fast.evaluate.results import evaluations_of
from iaat_fast.evaluate.suites import SINGLE
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.display import Display
from iaat_fast.sweep.driver import Outcome, drive
from iaat_fast.sweep.folder import SweepFolder, refuse_foreign
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.jobs import Job, State, Suite, is_trained, plan
from iaat_fast.sweep.launchers import LocalLauncher


@dataclass(frozen=True, kw_only=True)
class PGDJob(Job):
    """The evaluation of a run by PGD at several radii."""

    pgd: PGDs

    @property
    def name(self) -> str:
        return f"{self.run.name}.{self.pgd.name}"

    @property
    def state(self) -> State:
        folder = RunFolder(self.run.folder)
        if not is_trained(folder):
            return "new"
        found = [e for e in evaluations_of(folder) if e.suite == SINGLE and e.complete]
        done = any(set(self.pgd.keys) <= {m.key for m in e.measurements} for e in found)
        return "done" if done else "new"


def suite(grid: Grid) -> Suite:
    """Natural accuracy, PGD-10 × 5 and AutoAttack, at the grid's radius."""
    radius = ("--eps", units.to_text(grid.eps), "--alpha", units.to_text(grid.alpha))
    parts = ("--parts", "natural", "pgd", "autoattack")
    gradients = [
        word
        for name, default in (("precision", "fp32"), ("engine", "auto"))
        if (asked := getattr(grid, name)) != default
        for word in (f"--autoattack-{name}", asked)
    ]
    return Suite(name="quick", flags=(*radius, *parts, *gradients, *_images(grid)))


def _images(grid: Grid) -> tuple[str, ...]:
    return () if grid.images is None else ("--limit", str(grid.images))


def jobs_of(grid: Grid, runs: Sequence[Run]) -> list[Job]:
    """Each run's training, its suite, and its further attacks."""
    jobs = []
    for job in plan(runs, suite=suite(grid)):
        jobs.append(job)
        if job.stage == "evaluate":
            jobs += [_pgd_job(grid, job, pgd) for pgd in grid.attacks]
    return jobs


def _pgd_job(grid: Grid, after_training: Job, pgd: PGDs) -> PGDJob:
    words = (
        str(after_training.run.folder),
        *("--steps", str(pgd.steps), "--restarts", str(pgd.restarts)),
        *("--alpha", units.to_text(grid.alpha)),
        *("--eps", *map(units.to_text, pgd.radii)),
        *_images(grid),
    )
    return PGDJob(
        run=after_training.run,
        stage="evaluate",
        command=(sys.executable, "-m", "iaat_fast.evaluate", *words),
        after=after_training.after,
        pgd=pgd,
    )


def carry_out(grid: Grid, runs: Sequence[Run], out: Path, processes: int) -> Outcome:
    """Train and evaluate the runs, as many at once as there are processes.

    Raises:
        ValueError: a folder holds a run of another configuration.
        FileExistsError: a folder holds something else.
        BlockingIOError: others are at work there.
    """
    for run in runs:
        refuse_foreign(run)
    folder = SweepFolder(out)
    with folder.lock(0.0, say=print) as lock:
        folder.logs_dir.mkdir(exist_ok=True)
        launcher = LocalLauncher(processes, lock=lock)
        return drive(jobs_of(grid, runs), launcher, folder.logs_dir, Display(Console()))
