"""One case, measured: every contender checked, then timed against each other and against a copy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch

from benchmarks.interleave import Timings
from benchmarks.kernels import checking, timing
from benchmarks.kernels.cases import Case
from benchmarks.kernels.contenders import BASELINES, Call, Missing, contender
from benchmarks.kernels.expressions import prepared

CACHES = 4
"""Buffers that claim DRAM bandwidth are together at least this many times the L2 cache."""


@dataclasses.dataclass
class Record:
    """A contender at a case. `status`: ok, wrong (never timed), missing, failed; `detail` says why.

    Times in microseconds: percentiles over the n samples of `calls` calls each, rotating among `buffer_sets` sets;
    `graph_us` per call inside a CUDA graph. `share_of_copy`: of the bytes per second that a copy moved in the same
    rounds, bytes read plus bytes written, over as many bytes. `over_eager`, `over_compile`: how many times faster than
    the baseline, median over rounds. `launches`: kernels, copies and fills per call, counted at some of the problems.
    """

    op: str
    counted: bool
    problem: str
    shape: list[int]
    k: int
    dtype: str
    bandwidth_bound: bool
    backend: str
    status: str = "ok"
    detail: str = ""
    n: int | None = None
    calls: int | None = None
    buffer_sets: int | None = None
    bytes: int | None = None
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    gigabytes_per_second: float | None = None
    copy_gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    launches: float | None = None
    graph_us: float | None = None
    over_eager: float | None = None
    over_compile: float | None = None


def measure(
    case: Case, names: Iterable[str], device: torch.device, *, seconds: float, rounds: int
) -> list[Record]:
    """A record per contender; about `seconds` of interleaved samples."""
    first = case.arguments(device, seed=0)
    moved = case.moved(first)
    sets = [first]
    for seed in range(1, _buffer_sets(case, moved, device)):
        sets.append(case.arguments(device, seed))
    eager_sets = [prepared(case.op, args) for args in sets]

    records = {name: _empty(case, name) for name in names}
    sound = _sound(case, records, device, first)
    calls = {
        name: timing.rotating(call, eager_sets if name in BASELINES else sets)
        for name, call in sound.items()
    }
    if calls:
        contenders = {"copy": _copy(moved, len(sets), device), **calls}
        timings, counts = timing.sample(contenders, device, seconds=seconds, rounds=rounds)
        copied = moved / timings.median("copy") / 1e9
        for name in calls:
            record = records[name]
            record.calls, record.buffer_sets, record.bytes = counts[name], len(sets), moved
            _fill(record, timings, name, copied)
    if device.type == "cuda":
        for name in calls:
            arguments = eager_sets if name in BASELINES else sets
            _in_graph(records[name], timing.rotating(sound[name], arguments), len(sets))
    return list(records.values())


def count_launches(case: Case, records: Iterable[Record], device: torch.device) -> None:
    """Fill in `launches` of the case's records, with torch's profiler.

    Apart from the timing, and after all of it: once the profiler has run, its hooks stay and every launch pays them.
    """
    args = case.arguments(device, seed=0)
    for record in records:
        if record.status != "ok":
            continue
        wanted = prepared(case.op, args) if record.backend in BASELINES else args
        try:
            call = contender(record.backend, case, device)
            record.launches = timing.launches(timing.rotating(call, [wanted]))
        except Exception as error:
            record.detail = f"no profile: {_one_line(error)}"


def _empty(case: Case, name: str) -> Record:
    problem = case.problem
    return Record(
        op=case.op,
        counted=case.counted,
        problem=problem.label,
        shape=list(problem.shape),
        k=problem.k,
        dtype=str(problem.dtype).removeprefix("torch."),
        bandwidth_bound=problem.bandwidth,
        backend=name,
    )


def _sound(
    case: Case, records: dict[str, Record], device: torch.device, args: tuple[object, ...]
) -> dict[str, Call]:
    """The contenders that load, run and are right; the records of the others say why not."""
    sound: dict[str, Call] = {}
    try:
        right = checking.expected(case, args)
    except Exception as error:  # without it nothing can be called right
        for record in records.values():
            record.status, record.detail = "failed", f"the reference: {_one_line(error)}"
        return sound
    for name, record in records.items():
        if name == "reference" and case.op == "random_start_linf" and case.problem.bandwidth:
            record.status = "missing"
            record.detail = "the reference's int64 words would not fit beside the others"
            continue
        try:
            call = contender(name, case, device)
            wrong = checking.fault(name, case, call, args, right)
        except Missing as error:
            record.status, record.detail = "missing", str(error)
        except Exception as error:  # a contender that breaks is a result, not the end of the run
            record.status, record.detail = "failed", _one_line(error)
        else:
            if wrong is None:
                sound[name] = call
            else:
                record.status, record.detail = "wrong", wrong
    return sound


def _fill(record: Record, timings: Timings, name: str, copied: float) -> None:
    low, middle, high = timings.percentiles(name)
    record.n = len(timings.seconds[name])
    record.p20_us, record.p50_us, record.p80_us = low * 1e6, middle * 1e6, high * 1e6
    assert record.bytes is not None
    record.gigabytes_per_second = record.bytes / middle / 1e9
    record.copy_gigabytes_per_second = copied
    record.share_of_copy = timings.ratio("copy", name)
    if "eager" in timings.seconds:
        record.over_eager = timings.ratio("eager", name)
    if "compile" in timings.seconds:
        record.over_compile = timings.ratio("compile", name)


def _in_graph(record: Record, call: Call, sets: int) -> None:
    """Time inside a graph; what fails is told, the samples stay."""
    assert record.p50_us is not None
    try:
        record.graph_us = 1e6 * timing.graph_seconds(call, sets=sets, once=record.p50_us / 1e6)
    except Exception as error:
        record.detail = f"no graph: {_one_line(error)}"


def _buffer_sets(case: Case, moved: int, device: torch.device) -> int:
    if not (case.problem.bandwidth and device.type == "cuda"):
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, math.ceil(CACHES * cache / moved))


def _copy(moved: int, sets: int, device: torch.device) -> timing.Call:
    """A copy that reads and writes as many bytes as the op moves, between random buffers that rotate like its own."""
    half = max(moved // 8, 1)
    pairs: list[tuple[object, ...]] = [
        (torch.empty(half, device=device), torch.rand(half, device=device)) for _ in range(sets)
    ]
    return timing.rotating(torch.Tensor.copy_, pairs)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
