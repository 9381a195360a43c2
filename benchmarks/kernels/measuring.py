"""One case, measured: every provider checked, then timed against each other and against a copy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from benchmarks.interleave import Timings
from benchmarks.kernels import checking, timing
from benchmarks.kernels.cases import Case
from benchmarks.kernels.expressions import prepared
from benchmarks.kernels.providers import BASELINES, Call, Missing, provider
from benchmarks.record import Row, one_line

CACHES = 4
"""Buffers that claim DRAM bandwidth are together at least this many times the L2 cache."""


def measure(
    case: Case, names: Iterable[str], device: torch.device, *, seconds: float, rounds: int
) -> list[Row]:
    """A row per provider; about `seconds` of interleaved samples, of `calls` calls each, that rotate among
    `buffer_sets`.

    Figures: `share_of_copy`, of the bytes per second that a copy moved in the same rounds, bytes read plus bytes
    written, over as many bytes; `over_eager` and `over_compile`, how many times faster than the baseline, median over
    rounds; `graph_s`, seconds per call inside a CUDA graph; `launches`, kernels, copies and fills per call, counted at
    some of the problems.
    """
    first = case.arguments(device, seed=0)
    moved = case.moved(first)
    sets = [first]
    for seed in range(1, _buffer_sets(case, moved, device)):
        sets.append(case.arguments(device, seed))
    eager_sets = [prepared(case.op, args) for args in sets]

    rows = {name: _empty(case, name) for name in names}
    sound = _sound(case, rows, device, first)
    calls = {
        name: timing.rotating(call, eager_sets if name in BASELINES else sets)
        for name, call in sound.items()
    }
    if calls:
        providers = {"copy": _copy(moved, len(sets), device), **calls}
        timings, counts = timing.sample(providers, device, seconds=seconds, rounds=rounds)
        copied = moved / timings.median("copy") / 1e9
        for name in calls:
            figures = {"calls": counts[name], "buffer_sets": len(sets), "bytes": moved}
            rows[name].figures |= figures | _figures(timings, name, moved, copied)
            rows[name].sampled(timings.seconds[name])
    if device.type == "cuda":
        for name in calls:
            arguments = eager_sets if name in BASELINES else sets
            _in_graph(rows[name], timing.rotating(sound[name], arguments), len(sets))
    return list(rows.values())


def count_launches(case: Case, rows: Iterable[Row], device: torch.device) -> None:
    """Fill in `launches` of the case's rows, with torch's profiler.

    Apart from the timing, and after all of it: once the profiler has run, its hooks stay and every launch pays them.
    """
    args = case.arguments(device, seed=0)
    for row in rows:
        if row.status != "ok":
            continue
        wanted = prepared(case.op, args) if row.provider in BASELINES else args
        try:
            call = provider(row.provider, case, device)
            row.figures["launches"] = timing.launches(timing.rotating(call, [wanted]))
        except Exception as error:
            row.detail = f"no profile: {one_line(error)}"


def _empty(case: Case, name: str) -> Row:
    problem = case.problem
    figures = {
        "op": case.op,
        "counted": case.counted,
        "problem": problem.label,
        "shape": list(problem.shape),
        "k": problem.k,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "bandwidth_bound": problem.bandwidth,
    }
    return Row(case=case.title, provider=name, figures=figures)


def _sound(
    case: Case, rows: dict[str, Row], device: torch.device, args: tuple[object, ...]
) -> dict[str, Call]:
    """The providers that load, run and are right; the rows of the others say why not."""
    sound: dict[str, Call] = {}
    try:
        right = checking.expected(case, args)
    except Exception as error:  # without it nothing can be called right
        for row in rows.values():
            row.refused("failed", f"the reference: {one_line(error)}")
        return sound
    for name, row in rows.items():
        if name == "reference" and case.op == "random_start_linf" and case.problem.bandwidth:
            row.refused("missing", "the reference's int64 words would not fit next to the others")
            continue
        try:
            call = provider(name, case, device)
            wrong = checking.fault(name, case, call, args, right)
        except Missing as error:
            row.refused("missing", str(error))
        except Exception as error:  # a provider that breaks is a result, not the end of the run
            row.failed(error)
        else:
            if wrong is None:
                sound[name] = call
            else:
                row.refused("wrong", wrong)
    return sound


def _figures(timings: Timings, name: str, moved: int, copied: float) -> dict[str, float]:
    found = {
        "gigabytes_per_second": moved / timings.median(name) / 1e9,
        "copy_gigabytes_per_second": copied,
        "share_of_copy": timings.ratio("copy", name),
    }
    for baseline in BASELINES:
        if baseline in timings.seconds:
            found[f"over_{baseline}"] = timings.ratio(baseline, name)
    return found


def _in_graph(row: Row, call: Call, sets: int) -> None:
    """Time inside a graph; what fails is told, the samples stay."""
    assert row.p50 is not None
    try:
        row.figures["graph_s"] = timing.graph_seconds(call, sets=sets, once=row.p50)
    except Exception as error:
        row.detail = f"no graph: {one_line(error)}"


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
