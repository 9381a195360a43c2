"""`python -m benchmarks.evidence GRID`: trains, evaluates, tests the claim of Figure 3 or compares methods, writes it.

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

from benchmarks.evidence import comparison, write
from benchmarks.evidence.grid import OPTIONS, Grid
from benchmarks.evidence.grids import GRIDS
from benchmarks.evidence.jobs import carry_out, jobs_of
from benchmarks.evidence.measured import facts, verdicts
from benchmarks.evidence.pack import check_free, pack, unpack
from benchmarks.evidence.schedule import epochs_within
from benchmarks.registry import Parser
from iaat_fast.data import load
from iaat_fast.sweep.grid import Run

PROG = "python -m benchmarks.evidence"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments."""
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument("grid", choices=GRIDS, help="the runs")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evidence"), help="folder of the runs"
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="0 1 2; of CIFAR-10: 0")
    parser.add_argument("--jobs", type=int, help="processes at once: one per core; cifar10: 1")
    parser.add_argument("--data", metavar="PATH", help="of CIFAR-10, as training takes it")
    parser.add_argument("--epochs", type=int, help="cifar10: of every run")
    parser.add_argument(
        "--minutes",
        type=float,
        help="cifar10: epochs of every run, as many as a training at a fixed radius takes N minutes for",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="SETTING", help="settings by name, adv-eps51 for instance"
    )
    parser.add_argument(
        "--analyse", action="store_true", help="train and evaluate nothing, use what is there"
    )
    parser.add_argument("--width", type=int, help="of CIFAR-10's network, to rehearse")
    parser.add_argument("--limit", type=int, help="of CIFAR-10's images, to rehearse")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="at the end, the runs as files of at most 15 MiB"
    )
    parser.add_argument(
        "--unpack", type=Path, metavar="DIR", help="first, the runs that --pack wrote"
    )
    options = parser.parse_args(argv)
    grid = GRIDS[options.grid]
    for name in OPTIONS:
        if getattr(options, name) is not None and name not in grid.reads:
            expected = " or ".join(other for other, each in GRIDS.items() if name in each.reads)
            parser.error(f"--{name}: not read by {options.grid}, expected {expected}")
    if "epochs" in grid.reads and (options.epochs is None) == (options.minutes is None):
        parser.error(f"--epochs or --minutes: expected one of them with {options.grid}")
    if options.minutes is not None and not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes: {options.minutes:g}, expected a number above 0")
    if "data" in grid.reads and options.data is None and not options.analyse:
        parser.error(f"--data: missing, expected CIFAR-10's folder or .npz with {options.grid}")
    options.seeds = options.seeds or list(grid.seeds)
    options.jobs = options.jobs if options.jobs is not None else grid.processes or cores()
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs}, expected at least 1")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: {options.seeds}, expected each once")
    known = [setting.name for setting in grid.settings]
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
    # An evaluation takes as many images as it is told to, however few its training had.
    attacked = min((n for n in (grid.images, options.limit) if n is not None), default=None)
    grid = dataclasses.replace(grid, flags=(*grid.flags, *flags), images=attacked)
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
    out = options.out / GRIDS[options.grid].folder
    status = 0
    try:
        if options.pack is not None:
            check_free(options.pack)  # before hours of training, not after
        if options.data is not None and not options.analyse:
            load("cifar10", options.data)
        if options.unpack is not None:
            unpack(options.unpack, out)
        grid = chosen_grid(options, out)
        runs = grid.runs(out, options.seeds)
        command = f"{PROG} {' '.join(argv)}"
        if not options.analyse:
            began = time.perf_counter()
            outcome = carry_out(grid, runs, out, options.jobs)
            if options.pack is not None:
                _pack(grid, runs, out, options.pack)
            if outcome.signum is not None:
                print(f"stopped, the same command continues: {command}", file=sys.stderr)
                return 128 + outcome.signum
            for name, line in {**outcome.failed, **outcome.blocked}.items():
                print(f"{name}: {line}", file=sys.stderr)
            status = 1 if outcome.failed else 0
            print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
        written = _written(grid, runs, options.out / options.grid / "evidence", command)
        if not written:
            lacking = "fixed radius" if grid.baseline is None else "method"
            print(f"{PROG}: {out}: no {lacking} is measured", file=sys.stderr)
            return 2
        for path in written:
            print(path)
    except (OSError, ValueError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    return status


def _written(grid: Grid, runs: Sequence[Run], out: Path, command: str) -> list[Path]:
    """Analyse what is measured and write it to `out`; returns the files, none if nothing is."""
    known = facts(grid, runs, command)
    if grid.baseline is not None:
        compared = comparison.compare(grid, runs)
        return comparison.write(compared, out, known) if compared else []
    analysis = write.analyse(grid, verdicts(grid, runs))
    return write.write(grid, analysis, out, known) if analysis else []


def _pack(grid: Grid, runs: Sequence[Run], out: Path, parts: Path) -> None:
    left = {job.run.name for job in jobs_of(grid, runs) if job.state != "done"}
    written = pack(out, parts, [run.name for run in runs if run.name not in left])
    print(f"{len(written)} files in {parts}; --unpack {parts} continues from them")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
