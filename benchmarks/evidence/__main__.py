"""`python -m benchmarks.evidence digits`: trains, evaluates, tests the claim of Figure 3, and writes what was found."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.evidence.grids import DIGITS, Grid
from benchmarks.evidence.jobs import carry_out, verdicts
from benchmarks.evidence.write import analyse, write
from benchmarks.registry import Parser
from iaat_fast.storage import read_json
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.jobs import as_typed

PROG = "python -m benchmarks.evidence"
GRIDS = {"digits": DIGITS}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments."""
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument("grid", choices=GRIDS, help="the runs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evidence"), help="folder of the runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes at once; by default one per core",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="SETTING", help="settings by name, such as adv-eps51"
    )
    parser.add_argument(
        "--analyse", action="store_true", help="train and evaluate nothing, use what is there"
    )
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs}, expected at least 1")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: {options.seeds}, expected each once")
    known = [setting.name for setting in GRIDS[options.grid].settings]
    if unknown := [name for name in options.only or () if name not in known]:
        parser.error(f"--only: {unknown[0]}, expected among {', '.join(known)}")
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns 0, 1 if a run failed, 2 for bad input, 128 + n after signal n."""
    options = parse(argv)
    grid = GRIDS[options.grid]
    if options.only:
        chosen = tuple(s for s in grid.settings if s.name in options.only)
        grid = Grid(**{**vars(grid), "settings": chosen})
    out = options.out / options.grid
    runs, status = grid.runs(out, options.seeds), 0
    try:
        if not options.analyse:
            began = time.perf_counter()
            outcome = carry_out(grid, runs, out, options.jobs)
            if outcome.signum is not None:
                print(
                    f"stopped, the same command continues: {PROG} {' '.join(argv)}", file=sys.stderr
                )
                return 128 + outcome.signum
            for name, line in {**outcome.failed, **outcome.blocked}.items():
                print(f"{name}: {line}", file=sys.stderr)
            status = 1 if outcome.failed else 0
            print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
        analysis = analyse(grid, verdicts(grid, runs))
        if not analysis:
            print(f"{PROG}: {out}: no fixed radius is measured", file=sys.stderr)
            return 2
        for path in write(grid, analysis, out / "evidence", facts(options, grid, runs, argv)):
            print(path)
    except (OSError, ValueError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    return status


def facts(
    options: argparse.Namespace, grid: Grid, runs: Sequence[Run], argv: Sequence[str]
) -> dict[str, Any]:
    """What a reader needs to know of the runs, and to run them again."""
    trained = [run for run in runs if (run.folder / "results.json").is_file()]
    results = {run.name: read_json(run.folder / "results.json") for run in trained}
    environments = [read_json(run.folder / "env.json") for run in trained]
    commits = sorted({str(env.get("commit", "unknown"))[:7] for env in environments})
    here = machine.describe()
    return {
        "title": f"Fixed radii and IAAT, {options.grid}",
        "commands": [f"{PROG} {' '.join(argv)}"],
        "measured": (
            f"{len(trained)} of {len(runs)} runs, trained at commit {', '.join(commits)}; {here['cpu']}, "
            f"{here['cpu_capability']}, Python {here['python']}, torch {here['torch']}."
        ),
        "machine": here,
        "trained_at": commits,
        "seeds": len(options.seeds),
        "images": next(iter(results.values()))["samples"] if results else 0,
        "runs": {
            run.name: {
                "command": as_typed(["python", "-m", "iaat_fast.train", *run.words]),
                "training_seconds": results[run.name].get("training_seconds"),
            }
            for run in trained
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
