"""Measures one case: every provider is checked, then timed in turn with the others and with a copy."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.interleave import Timings, interleave, wait
from benchmarks.kernels.cases import Case
from benchmarks.kernels.expressions import prepared
from benchmarks.kernels.providers import BASELINES, Call, Missing, expected, fault, provider
from benchmarks.record import Row, one_line

GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
CACHES = 4
"""The buffers of a problem with `bandwidth` are together at least this many times the L2 cache."""


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
        name: rotating(call, eager_sets if name in BASELINES else sets)
        for name, call in sound.items()
    }
    if calls:
        providers = {"copy": _copy(moved, len(sets), device), **calls}
        timings, counts = sample(providers, device, seconds=seconds, rounds=rounds)
        copied = moved / timings.median("copy") / 1e9
        for name in calls:
            figures = {"calls": counts[name], "buffer_sets": len(sets), "bytes": moved}
            rows[name].figures |= figures | _figures(timings, name, moved, copied)
            rows[name].sampled(timings.seconds[name])
    if device.type == "cuda":
        for name in calls:
            arguments = eager_sets if name in BASELINES else sets
            _in_graph(rows[name], rotating(sound[name], arguments), len(sets))
    return list(rows.values())


def count_launches(case: Case, rows: Iterable[Row], device: torch.device) -> None:
    """Fill in `launches` of the case's rows, with torch's profiler.

    Called after all timing: once the profiler has run, its hooks stay and slow down every launch.
    """
    args = case.arguments(device, seed=0)
    for row in rows:
        if row.status != "ok":
            continue
        wanted = prepared(case.op, args) if row.provider in BASELINES else args
        try:
            call = provider(row.provider, case, device)
            row.figures["launches"] = launches(rotating(call, [wanted]))
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
    case: Case, rows: dict[str, Row], device: torch.device, args: tuple[Any, ...]
) -> dict[str, Call]:
    """The providers that load, run and give right results; the rows of the others say what is wrong."""
    sound: dict[str, Call] = {}
    try:
        right = expected(case, args)
    except Exception as error:  # without the reference no provider can be checked
        for row in rows.values():
            row.refused("failed", f"the reference: {one_line(error)}")
        return sound
    for name, row in rows.items():
        if name == "reference" and case.op == "random_start_linf" and case.problem.bandwidth:
            row.refused("missing", "the reference's int64 words would not fit next to the others")
            continue
        try:
            call = provider(name, case, device)
            wrong = fault(name, case, call, args, right)
        except Missing as error:
            row.refused("missing", str(error))
        except Exception as error:  # a provider that fails is a result and does not end the run
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
    """Add the time inside a CUDA graph to the row; if that fails, its samples stay and `detail` says why."""
    assert row.p50 is not None
    try:
        row.figures["graph_s"] = graph_seconds(call, sets=sets, once=row.p50)
    except Exception as error:
        row.detail = f"no graph: {one_line(error)}"


def _buffer_sets(case: Case, moved: int, device: torch.device) -> int:
    if not (case.problem.bandwidth and device.type == "cuda"):
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, math.ceil(CACHES * cache / moved))


def _copy(moved: int, sets: int, device: torch.device) -> Call:
    """A copy that reads and writes as many bytes as the op moves, between random buffers that rotate like its own."""
    half = max(moved // 8, 1)
    pairs: list[tuple[Any, ...]] = [
        (torch.empty(half, device=device), torch.rand(half, device=device)) for _ in range(sets)
    ]
    return rotating(torch.Tensor.copy_, pairs)


def rotating(call: Callable[..., object], sets: list[tuple[Any, ...]]) -> Call:
    """A call that takes the next set of arguments each time and keeps its last results.

    Results are kept so that each is written to other memory, like the inputs: a block that is freed and allocated again
    would stay in the cache.
    """
    results: list[object] = [None] * len(sets)
    turn = itertools.cycle(range(len(sets)))

    def once() -> None:
        number = next(turn)
        results[number] = call(*sets[number])

    return once


def sample(
    providers: Mapping[str, Call], device: torch.device, *, seconds: float, rounds: int
) -> tuple[Timings, dict[str, int]]:
    """Interleaved samples of every provider, about `seconds` in all, and the calls in a sample of each.

    At least 10 rounds (or `rounds`, if that is less) and at most `rounds`.
    """
    once = {name: _estimate(call, device) for name, call in providers.items()}
    # A sample of a millisecond is long against the resolution of CUDA's events, half a microsecond.
    calls = {name: int(min(max(1e-3 / each, 1), 200)) for name, each in once.items()}
    lasting = sum(calls[name] * each for name, each in once.items())
    rounds = max(min(rounds, int(seconds / lasting)), min(rounds, 10))
    if device.type == "cpu":
        return interleave(providers, rounds=rounds, calls=calls), calls
    return _interleave_on_gpu(providers, rounds, calls), calls


def graph_seconds(call: Call, *, sets: int, once: float, rounds: int = 20) -> float:
    """Seconds per call inside a CUDA graph of many: the median over replays."""
    calls = sets * max(1, min(64, int(2e-3 / once)) // sets)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # creates handles and workspaces of this stream before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    timings = _interleave_on_gpu({"graph": graph.replay}, rounds, {"graph": 1})
    return timings.median("graph") / calls


def launches(call: Call, *, calls: int = 3) -> float:
    """Kernels, copies and fills that a call puts on the GPU, as torch's profiler records them."""
    call()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return sum(event.get("cat") in GPU_WORK for event in events) / calls


def _estimate(call: Call, device: torch.device) -> float:
    """Rough seconds per call, after first calls that compile and allocate."""
    call()
    call()
    wait(device)
    start = time.perf_counter()
    for _ in range(3):
        call()
    wait(device)
    return max((time.perf_counter() - start) / 3, 1e-7)


def _interleave_on_gpu(
    providers: Mapping[str, Call], rounds: int, calls: Mapping[str, int]
) -> Timings:
    """Like `interleave`, but timed by CUDA events, on the device's clock; the host waits once per round."""
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    first = next(iter(providers.values()))
    for round_number in range(rounds + 2):
        first()  # untimed: the device is busy, as before every later provider, when the first event is recorded
        marks = {}
        for name, call in providers.items():
            marks[name] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[name][0].record()
            for _ in range(calls[name]):
                call()
            marks[name][1].record()
        torch.cuda.synchronize()
        if round_number >= 2:
            for name, (start, end) in marks.items():
                seconds[name].append(start.elapsed_time(end) / 1e3 / calls[name])
    return Timings({name: np.array(values) for name, values in seconds.items()})
