"""What the runs of a grid have come to: verdicts by attack, radii and seconds, and the facts that a reader needs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.evidence.frontier import Array, Verdicts
from benchmarks.evidence.grid import Grid, PGDs
from iaat_fast import units
from iaat_fast.evaluate.results import read_record
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.jobs import as_typed, is_trained

NATURAL = "natural"
SUITE_STEPS, SUITE_RESTARTS = 10, 5  # of PGD in the suite "quick"


def attacks(grid: Grid) -> dict[str, str]:
    """The attacks as tables call them, AutoAttack first, each with the name of its measurement in records."""
    suffix, said = "", ""
    if grid.precision != "fp32":
        suffix, said = f"-{grid.precision}", f" ({grid.precision} gradients)"
    if grid.engine != "auto":
        suffix += f"-{grid.engine}"
    found = {
        f"AutoAttack{said}, {units.radius_name(grid.eps)}": (
            f"autoattack-eps{units.to_text(grid.eps)}{suffix}"
        )
    }
    own = PGDs(steps=SUITE_STEPS, restarts=SUITE_RESTARTS, radii=(grid.eps,))
    for pgd in (own, *grid.attacks):
        for eps, key in zip(pgd.radii, pgd.keys, strict=True):
            found[f"PGD-{pgd.steps} × {pgd.restarts}, {units.radius_name(eps)}"] = key
    return found


def by_image(grid: Grid, run: Run) -> dict[str, Array]:
    """The verdicts of a run, bool [N], natural and by attack, of what has been measured, at the end of training too."""
    found: dict[str, Array] = {}
    folder = RunFolder(run.folder)
    closing = [folder.results_path] if folder.results_path.is_file() else []
    for path in (*closing, *sorted(folder.evaluation_dir.glob("*/results.json"))):
        content, arrays = read_record(path.parent)
        finished = {row["key"] for row in content["measurements"]}
        for name, key in {NATURAL: NATURAL, **attacks(grid)}.items():
            if key in finished:
                # At the end of a training all test images are measured, also where an attack takes fewer.
                found[name] = arrays[key][: grid.images]
    return found


def verdicts(grid: Grid, runs: Sequence[Run]) -> dict[str, dict[str, Verdicts]]:
    """For each attack, the verdicts of the settings that it has measured, all of the same seeds.

    Those are the seeds of which every setting is measured, or of which all are that are measured at all.

    Returns:
        By attack ("AutoAttack, ε = 51"), then by the name of the setting.
    """
    arrays = {(run.setting, run.seed): by_image(grid, run) for run in runs}
    found: dict[str, dict[str, Verdicts]] = {}
    for attack in attacks(grid):
        seeds: dict[str, set[int]] = {}
        for (setting, seed), each in arrays.items():
            if {NATURAL, attack} <= each.keys():
                seeds.setdefault(setting, set()).add(seed)
        common = sorted(set.intersection(*seeds.values())) if seeds else []
        if common:
            found[attack] = {
                setting: Verdicts(
                    natural=np.stack([arrays[setting, seed][NATURAL] for seed in common]),
                    robust=np.stack([arrays[setting, seed][attack] for seed in common]),
                )
                for setting in seeds
            }
    return found


def training(run: Run) -> dict[str, float] | None:
    """Mean and spread of the radii at the end of a training, on the [0, 1] scale, and the seconds of its steps by the
    clock, of an epoch and of all; None before it has ended."""
    folder = RunFolder(run.folder)
    if not is_trained(folder):
        return None
    results, seconds = folder.results(), [row["seconds"] for row in folder.metrics()]
    radii = {name: float(results[name]) for name in ("eps_mean", "eps_std")}
    return {**radii, "seconds_per_epoch": mean(seconds), "seconds": sum(seconds)}


def facts(grid: Grid, runs: Sequence[Run], command: str) -> dict[str, Any]:
    """What a reader needs to know of the runs, and to run them again."""
    trained = [run for run in runs if is_trained(RunFolder(run.folder))]
    samples = [RunFolder(run.folder).results()["samples"] for run in trained[:1]]
    environments = [RunFolder(run.folder).env() for run in trained]
    commits = sorted({str(env.get("commit", "unknown"))[:7] for env in environments})
    threads = sorted({int(env["threads"]) for env in environments if "threads" in env})
    seeds = len({run.seed for run in runs})
    here = machine.describe()
    return {
        "title": grid.title,
        "commands": [command],
        "measured": (
            f"{len(trained)} of {len(runs)} runs, trained at commit {', '.join(commits)} with "
            f"{' or '.join(map(str, threads))} thread{'s' * (threads != [1])} each; {here['cpu']}, "
            f"{here['cpu_capability']}, Python {here['python']}, torch {here['torch']}."
        ),
        "machine": here,
        "trained_at": commits,
        "seeds": f"{seeds} seed{'s' * (seeds > 1)}",
        "images": min([*samples, grid.images or samples[0]]) if samples else 0,
        "runs": {
            run.name: as_typed(["python", "-m", "iaat_fast.train", *run.words]) for run in trained
        },
    }
