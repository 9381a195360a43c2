"""Time per call: interleaved samples, inside a CUDA graph, and how many kernels a call launches."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.interleave import Timings, interleave

Call = Callable[[], object]

GPU_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}


def rotating(call: Callable[..., object], sets: list[tuple[object, ...]]) -> Call:
    """A call that takes the next set of arguments each time and keeps its last results.

    Kept results are written to memory of their own, as the inputs are read from: a block that is freed and taken again
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
        call()  # handles and workspaces of this stream come to be outside the capture
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
    """Seconds per call, roughly, after the first calls have compiled and allocated what they need."""
    call()
    call()
    _wait(device)
    start = time.perf_counter()
    for _ in range(3):
        call()
    _wait(device)
    return max((time.perf_counter() - start) / 3, 1e-7)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _interleave_on_gpu(
    providers: Mapping[str, Call], rounds: int, calls: Mapping[str, int]
) -> Timings:
    """As `interleave`, timed by CUDA events: the device's own clock, and the host waits once a round."""
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
