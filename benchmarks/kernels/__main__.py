"""`python -m benchmarks.kernels`: measure the ops and write records, tables and a figure."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.kernels import plot, tables
from benchmarks.kernels.cases import FLOATS, OPS, make_cases
from benchmarks.kernels.contenders import BACKENDS, BASELINES
from benchmarks.kernels.faster import faster
from benchmarks.kernels.measure import Record, measure

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
    device, started = torch.device(options.device), time.perf_counter()
    described = machine.describe(options.device)
    dtypes = [DTYPES[name] for name in options.dtypes]
    cases = make_cases(options.ops, dtypes, quick=options.quick, on_gpu=options.device == "cuda")
    records: list[Record] = []
    left_out: list[str] = []
    broken: dict[str, str] = {}
    for number, case in enumerate(cases, 1):
        if time.perf_counter() - started > options.time_limit:
            left_out = [case.title for case in cases[number - 1 :]]
            break
        print(f"{number}/{len(cases)} {case.title}", file=sys.stderr, flush=True)
        effort = {"seconds": 0.05, "rounds": 5} if options.quick else {"seconds": 0.4, "rounds": 50}
        try:
            records += measure(case, options.backends, device, **effort)
        except Exception as error:  # out of memory, say: what is measured is still written
            broken[case.title] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        if device.type == "cuda":
            torch.cuda.empty_cache()
    rows = faster(records)
    result = {
        "command": ["python", "-m", "benchmarks.kernels", *argv],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        "quick": options.quick,
        "machine": described,
        "faster": rows,
        "left_out": left_out,
        "broken": broken,
        "records": [dataclasses.asdict(record) for record in records],
    }
    (options.out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "kernels.md").write_text(tables.markdown(described, records, rows))
    plot.draw(records, described, options.out / "kernels.png")
    console = Console() if sys.stdout.isatty() else Console(width=150)
    tables.show(console, records, rows)
    if left_out:
        print(f"left out after {options.time_limit:g} s: {len(left_out)} of {len(cases)} cases")
    print(f"kernels.json, kernels.md and kernels.png are in {options.out}")
    bad = [record for record in records if record.status in ("wrong", "failed")]
    for record in bad:
        print(f"{record.status}: {record.backend} {record.op} {record.problem}: {record.detail}")
    for title, error in broken.items():
        print(f"not measured: {title}: {error}")
    return 1 if bad or broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
