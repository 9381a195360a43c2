"""`python -m benchmarks.kernels`: measure the ops and write records, tables and a figure."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.kernels import plot, tables
from benchmarks.kernels.cases import FLOATS, OPS, Case, make_cases
from benchmarks.kernels.contenders import BACKENDS, BASELINES
from benchmarks.kernels.faster import faster
from benchmarks.kernels.measure import Record, count_launches, measure

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.kernels",
        description="Measure every op on every backend. Writes kernels.json, kernels.md and kernels.png.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None)
    parser.add_argument("--out", type=Path, default=Path("build/kernels"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="CIFAR sizes, few samples")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS, metavar="OP")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=(*BACKENDS, *BASELINES),
        metavar="NAME",
        help="native, triton, reference, eager, compile; all, but compile not with --quick",
    )
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=tuple(DTYPES))
    parser.add_argument(
        "--time-limit",
        type=float,
        default=float("inf"),
        metavar="S",
        help="start no further case after S seconds",
    )
    parser.add_argument("--record-only", action="store_true", help="write kernels.json alone")
    options = parser.parse_args(argv)
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.backends is None:
        options.backends = (*BACKENDS, *(BASELINES[:1] if options.quick else BASELINES))
    return options


def main(argv: Sequence[str]) -> int:
    """Run; 0 if every contender that loaded was right and ran, else 1."""
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    header = {
        "command": ["python", "-m", "benchmarks.kernels", *argv],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": machine.describe(options.device),
    }
    run = Run(options)

    def write() -> None:
        """After every case: a run that is cut off leaves what it has."""
        result = {**header, **run.result()}
        (options.out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")

    run.measure(write)
    if options.device == "cuda":
        run.count_launches()
    write()
    records = run.all_records()
    rows = faster(records)
    what = "kernels.json is"
    if not options.record_only:
        what = "kernels.json, kernels.md and kernels.png are"
        described = header["machine"]
        (options.out / "kernels.md").write_text(tables.markdown(described, records, rows))
        plot.draw(records, described, options.out / "kernels.png")
    tables.show(Console() if sys.stdout.isatty() else Console(width=150), records, rows)
    if run.left_out:
        print(f"{len(run.left_out)} cases were left out after {options.time_limit:g} s")
    print(f"{what} in {options.out}")
    bad = [record for record in records if record.status in ("wrong", "failed")]
    for record in bad:
        print(f"{record.status}: {record.backend} {record.op} {record.problem}: {record.detail}")
    for title, error in run.broken.items():
        print(f"not measured: {title}: {error}")
    return 1 if bad or run.broken else 0


class Run:
    """The cases one after the other: records by case, what broke, and what there was no time for."""

    # Seconds beyond the time limit that counting launches may take.
    COUNTING = 25.0

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.started = options, time.perf_counter()
        self.device = torch.device(options.device)
        dtypes = [DTYPES[name] for name in options.dtypes]
        on_gpu = options.device == "cuda"
        self.cases = make_cases(options.ops, dtypes, quick=options.quick, on_gpu=on_gpu)
        self.records: dict[Case, list[Record]] = {}
        self.broken: dict[str, str] = {}
        self.left_out: list[str] = []

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def all_records(self) -> list[Record]:
        return [record for found in self.records.values() for record in found]

    def result(self) -> dict[str, Any]:
        """What there is so far, for the record."""
        records = self.all_records()
        return {
            "seconds": round(self.elapsed(), 1),
            "faster": faster(records),
            "left_out": self.left_out,
            "broken": self.broken,
            "records": [dataclasses.asdict(record) for record in records],
        }

    def measure(self, done: Callable[[], None]) -> None:
        """All cases; `done` is called after each."""
        quick, names = self.options.quick, self.options.backends
        seconds, rounds = (0.05, 5) if quick else (0.4, 50)
        for number, case in enumerate(self.cases, 1):
            if self.elapsed() > self.options.time_limit:
                self.left_out = [left.title for left in self.cases[number - 1 :]]
                return
            print(f"{number}/{len(self.cases)} {case.title}", file=sys.stderr, flush=True)
            try:
                found = measure(case, names, self.device, seconds=seconds, rounds=rounds)
                self.records[case] = found
            except Exception as error:  # out of memory, say: what is measured is still written
                message = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self.broken[case.title] = message[:500]
            done()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def count_launches(self) -> None:
        """At the first small and the first large problem of each op."""
        first: dict[tuple[str, bool], Case] = {}
        for case in self.records:
            first.setdefault((case.op, case.problem.bandwidth), case)
        for case in first.values():
            if self.elapsed() > self.options.time_limit + self.COUNTING:
                return
            count_launches(case, self.records[case], self.device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
