"""The ops of `iaat_fast.ops` on every backend, measured against a device copy, eager torch and torch.compile."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from benchmarks import registry
from benchmarks.kernels.cases import FLOATS, OPS, Case, make_cases
from benchmarks.kernels.measuring import count_launches
from benchmarks.kernels.measuring import measure as measure_case
from benchmarks.kernels.providers import BACKENDS, BASELINES
from benchmarks.record import Record, Row, say

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
CLASSES = {False: "small", True: "bandwidth-bound"}
FASTER = "time over the fastest backend's"
# Seconds beyond the time limit that counting launches may take.
COUNTING = 25.0


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    registry.add_device(parser)
    add("--ops", nargs="+", choices=OPS, default=OPS, metavar="OP")
    add(
        "--backends",
        nargs="+",
        choices=(*BACKENDS, *BASELINES),
        metavar="NAME",
        help="native, triton, reference, eager, compile; all, but compile not with --quick",
    )
    add("--dtypes", nargs="+", choices=tuple(DTYPES), help="all; float16 not with --quick")
    registry.add_time_limit(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(
        options,
        backends=((*BACKENDS, BASELINES[0]), (*BACKENDS, *BASELINES)),
        dtypes=(("float32", "bfloat16"), tuple(DTYPES)),
    )


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    """The rows case by case; at the end the fastest backends and, on a GPU, the launches of the first problems."""
    device = torch.device(options.device)
    on_gpu, dtypes = device.type == "cuda", [DTYPES[name] for name in options.dtypes]
    cases = make_cases(options.ops, dtypes, quick=options.quick, on_gpu=on_gpu)
    seconds, rounds = (0.05, 5) if options.quick else (0.4, 50)
    measured: dict[Case, list[Row]] = {}
    for number, case in enumerate(cases, 1):
        if record.out_of_time(case.title):
            continue
        say(f"{number}/{len(cases)} {case.title}")
        try:
            found = measure_case(case, options.backends, device, seconds=seconds, rounds=rounds)
        except Exception as error:  # out of memory, say: what is measured is still written
            found = [Row(case=case.title, provider="all").failed(error)]
        else:
            measured[case] = found
        yield from found
        if on_gpu:
            torch.cuda.empty_cache()
    yield from faster([row for rows in measured.values() for row in rows])
    if not on_gpu:
        return
    first: dict[tuple[str, bool], Case] = {}
    for case in measured:
        first.setdefault((case.op, case.problem.bandwidth), case)
    for case in first.values():
        if record.seconds < options.time_limit + COUNTING:
            count_launches(case, measured[case], device)
            record.write()


def faster(rows: Iterable[Row]) -> list[Row]:
    """The time of each backend relative to the fastest one, by op and class of size; it decides the default of an op.

    It is the geometric mean over the problems at which all of these backends were measured. Small sizes are compared by
    their time inside a CUDA graph if there is one, because attacks run them so; the others by their median sample.
    """
    measured = [
        row
        for row in rows
        if row.status == "ok" and row.provider in BACKENDS and row.figures["counted"]
    ]
    found = []
    for op in dict.fromkeys(row.figures["op"] for row in measured):
        for bound, name in CLASSES.items():
            group = [
                row
                for row in measured
                if row.figures["op"] == op and row.figures["bandwidth_bound"] is bound
            ]
            found += _compared(f"{op}, {name}", group)
    return found


def _compared(case: str, group: list[Row]) -> list[Row]:
    times: dict[str, dict[Any, float]] = {}
    for row in group:
        graph = None if row.figures["bandwidth_bound"] else row.figures.get("graph_s")
        time = row.p50 if graph is None else graph
        assert time is not None
        times.setdefault(row.provider, {})[row.case] = time
    shared = set.intersection(*(set(each) for each in times.values())) if times else set()
    if not shared:
        return []
    means = {
        name: math.exp(sum(math.log(each[key]) for key in shared) / len(shared))
        for name, each in times.items()
    }
    best = min(means.values())
    rows = [
        Row(case=case, provider=name, metric=FASTER, unit="").sampled([mean / best])
        for name, mean in means.items()
    ]
    for row in rows:
        row.figures["problems"] = len(shared)
    return rows
