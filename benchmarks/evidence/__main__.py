"""`python -m benchmarks.evidence digits|cifar10`: trains, evaluates, tests the claim of Figure 3, writes what it found.

The same command continues with what it finds in --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.evidence.grids import CIFAR10, DIGITS, Grid
from benchmarks.evidence.jobs import carry_out, jobs_of, verdicts
from benchmarks.evidence.pack import check_free, pack, unpack
from benchmarks.evidence.schedule import epochs_within
from benchmarks.evidence.write import analyse, write
from benchmarks.registry import Parser
from iaat_fast.storage import read_json
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.jobs import as_typed

PROG = "python -m benchmarks.evidence"
GRIDS = {"digits": DIGITS, "cifar10": CIFAR10}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments."""
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument("grid", choices=GRIDS, help="the runs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evidence"), help="folder of the runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="0 1 2; with cifar10: 0")
    parser.add_argument("--jobs", type=int, help="processes at once: one per core; with cifar10: 1")
    parser.add_argument("--data", metavar="PATH", help="cifar10: as training takes it")
    parser.add_argument("--epochs", type=int, help="cifar10: of every run")
    parser.add_argument(
        "--minutes",
        type=float,
        help="cifar10: epochs of every run, as many as a training at a fixed radius takes N minutes for",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="SETTING", help="settings by name, such as adv-eps51"
    )
    parser.add_argument(
        "--analyse", action="store_true", help="train and evaluate nothing, use what is there"
    )
    parser.add_argument("--width", type=int, help="cifar10: of the network, for a rehearsal")
    parser.add_argument("--limit", type=int, help="cifar10: images, for a rehearsal")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="at the end, the runs as files of at most 15 MiB"
    )
    parser.add_argument(
        "--unpack", type=Path, metavar="DIR", help="first, the runs that --pack wrote"
    )
    options = parser.parse_args(argv)
    cifar = options.grid == "cifar10"
    for name in ("data", "epochs", "minutes", "width", "limit"):
        if getattr(options, name) is not None and not cifar:
            parser.error(f"--{name}: not read by {options.grid}, expected cifar10")
    if cifar and (options.epochs is None) == (options.minutes is None):
        parser.error("--epochs or --minutes: expected one of them with cifar10")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes: {options.minutes:g}, expected a number above 0")
    options.seeds = options.seeds or ([0] if cifar else [0, 1, 2])
    options.jobs = options.jobs if options.jobs is not None else 1 if cifar else cores()
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs}, expected at least 1")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: {options.seeds}, expected each once")
    known = [setting.name for setting in GRIDS[options.grid].settings]
    if unknown := [name for name in options.only or () if name not in known]:
        parser.error(f"--only: {unknown[0]}, expected among {', '.join(known)}")
    return options


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def chosen_grid(options: argparse.Namespace, out: Path) -> Grid:
    """The grid that the arguments ask for; with --minutes, after a training of a few seconds (see `epochs_within`)."""
    grid = GRIDS[options.grid]
    if options.only:
        kept = tuple(s for s in grid.settings if s.name in options.only)
        grid = dataclasses.replace(grid, settings=kept)
    given = {name: getattr(options, name) for name in ("data", "width", "limit")}
    flags = [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]
    grid = dataclasses.replace(grid, flags=(*grid.flags, *flags))
    epochs = options.epochs
    if options.minutes is not None:
        if options.analyse and not (out / "schedule.json").is_file():
            raise ValueError(f"--analyse: no runs in {out}")
        epochs = epochs_within(grid, options.minutes, out)
    if epochs is None:
        return grid
    # IAAT warms up for 5 of 200 epochs in the paper; here for as large a share, but an epoch at least.
    warmup = str(max(1, round(epochs * 5 / 200)))
    settings = tuple(
        dataclasses.replace(s, flags=(*s.flags, "--warmup-epochs", warmup))
        if "--eps-w" in s.flags
        else s
        for s in grid.settings
    )
    return dataclasses.replace(
        grid, settings=settings, flags=(*grid.flags, "--epochs", str(epochs))
    )


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns 0, 1 if a run failed, 2 for bad input, 128 + n after signal n."""
    options = parse(argv)
    out = options.out / options.grid
    status = 0
    try:
        if options.pack is not None:
            check_free(options.pack)  # before hours of training, not after
        if options.unpack is not None:
            unpack(options.unpack, out)
        grid = chosen_grid(options, out)
        runs = grid.runs(out, options.seeds)
        if not options.analyse:
            began = time.perf_counter()
            outcome = carry_out(grid, runs, out, options.jobs)
            if options.pack is not None:
                _pack(grid, runs, out, options.pack)
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


def _pack(grid: Grid, runs: Sequence[Run], out: Path, parts: Path) -> None:
    left = {job.run.name for job in jobs_of(grid, runs) if job.state != "done"}
    written = pack(out, parts, [run.name for run in runs if run.name not in left])
    print(f"{len(written)} files in {parts}; --unpack {parts} continues from them")


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
        "seeds": f"{len(options.seeds)} seed{'s' * (len(options.seeds) > 1)}",
        "images": next(iter(results.values()))["samples"] if results else 0,
        "runs": {
            run.name: as_typed(["python", "-m", "iaat_fast.train", *run.words]) for run in trained
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
