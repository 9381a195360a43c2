"""Trains and evaluates the runs of a grid, in processes as a sweep does; what is done already is not done again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.evidence.frontier import Verdicts
from benchmarks.evidence.grids import Grid, PGDs
from iaat_fast import units
from iaat_fast.evaluate.results import evaluations_of, read_record
from iaat_fast.evaluate.suites import SINGLE
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.display import Display
from iaat_fast.sweep.driver import Outcome, drive
from iaat_fast.sweep.folder import SweepFolder, refuse_foreign
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.jobs import Job, State, Suite, is_trained, plan
from iaat_fast.sweep.launchers import LocalLauncher

SUITE_STEPS, SUITE_RESTARTS = 10, 5  # of PGD in the suite "quick"


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
        done = any(set(_keys(self.pgd)) <= {m.key for m in e.measurements} for e in found)
        return "done" if done else "new"


def suite(grid: Grid) -> Suite:
    """Natural accuracy, PGD-10 × 5 and AutoAttack, at the grid's radius."""
    radius = ("--eps", units.to_text(grid.eps), "--alpha", units.to_text(grid.alpha))
    parts = ("--parts", "natural", "pgd", "autoattack")
    precision = () if grid.precision == "fp32" else ("--autoattack-precision", grid.precision)
    return Suite(name="quick", flags=(*radius, *parts, *precision))


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
    )
    return PGDJob(
        run=after_training.run,
        stage="evaluate",
        command=(sys.executable, "-m", "iaat_fast.evaluate", *words),
        after=after_training.after,
        pgd=pgd,
    )


def _keys(pgd: PGDs) -> list[str]:
    """Names of its measurements in records."""
    return [units.attack_key(pgd.steps, pgd.restarts, eps) for eps in pgd.radii]


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


def verdicts(grid: Grid, runs: Sequence[Run]) -> dict[str, dict[str, Verdicts]]:
    """For each attack, the verdicts of the settings that it has measured, all of the same seeds.

    Those are the seeds of which every setting is measured, or of which all are that are measured at all.

    Returns:
        By attack ("AutoAttack, ε = 51"), then by the name of the setting.
    """
    arrays = {(run.setting, run.seed): _arrays(grid, run) for run in runs}
    found: dict[str, dict[str, Verdicts]] = {}
    for attack in attacks(grid):
        seeds: dict[str, set[int]] = {}
        for (setting, seed), each in arrays.items():
            if {"natural", attack} <= each.keys():
                seeds.setdefault(setting, set()).add(seed)
        common = sorted(set.intersection(*seeds.values())) if seeds else []
        if common:
            found[attack] = {
                setting: Verdicts(
                    natural=np.stack([arrays[setting, seed]["natural"] for seed in common]),
                    robust=np.stack([arrays[setting, seed][attack] for seed in common]),
                )
                for setting in seeds
            }
    return found


def attacks(grid: Grid) -> dict[str, str]:
    """The attacks as tables call them, AutoAttack first, each with the name of its measurement in records."""
    precise = grid.precision == "fp32"
    suffix, said = ("", "") if precise else (f"-{grid.precision}", f" ({grid.precision} gradients)")
    found = {
        f"AutoAttack{said}, {units.radius_name(grid.eps)}": (
            f"autoattack-eps{units.to_text(grid.eps)}{suffix}"
        )
    }
    own = PGDs(steps=SUITE_STEPS, restarts=SUITE_RESTARTS, radii=(grid.eps,))
    for pgd in (own, *grid.attacks):
        for eps, key in zip(pgd.radii, _keys(pgd), strict=True):
            found[f"PGD-{pgd.steps} × {pgd.restarts}, {units.radius_name(eps)}"] = key
    return found


def _arrays(grid: Grid, run: Run) -> dict[str, np.ndarray]:
    """The verdicts of a run, "natural" and by attack, of what has been measured, at the end of its training too."""
    found: dict[str, np.ndarray] = {}
    folder = RunFolder(run.folder)
    closing = [folder.results_path] if folder.results_path.is_file() else []
    for path in (*closing, *sorted(folder.evaluation_dir.glob("*/results.json"))):
        content, arrays = read_record(path.parent)
        finished = {row["key"] for row in content["measurements"]}
        for name, key in {"natural": "natural", **attacks(grid)}.items():
            if key in finished:
                found[name] = arrays[key]
    return found
