"""CUDA graphs: steps captured once per shape and replayed, without Python in between and gaps between kernels."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger("iaat_fast")

# Number of graphs kept: for a data set's batches, its last batch, and the smaller batches of active rows.
_KEPT = 8
# Maximum number of steps in one graph. A replay costs the host about 10 us, little compared with 20 passes through a
# network; a capture takes as long as an eager run of the steps.
_LONGEST = 20

Capture = Callable[[Callable[[], None], Any], Callable[[], None]]


def capturing(device: torch.device) -> bool:
    """Whether the caller is capturing a CUDA graph: kernels launched now are recorded and not run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def capture_cuda(
    body: Callable[[], None], pool: Any, stream: torch.cuda.Stream | None = None
) -> Callable[[], None]:
    """Capture the kernels that `body` launches in a CUDA graph, and return the function that replays it.

    Args:
        body: launches the work.
        pool: memory pool of the graph; None for a new one.
        stream: where to capture; None for torch's capture stream.

    Raises:
        Exception: what `body` raised, else what made the capture fail. Everything is then as it was before.
    """
    device = torch.cuda.current_device() if stream is None else stream.device_index
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    generator, graph = torch.cuda.default_generators[device], torch.cuda.CUDAGraph()
    drawn = generator.clone_state()
    failure: Exception | None = None
    try:
        # The outer block restores the current stream, which torch does not do if the capture fails. "thread_local":
        # other threads, such as the one that pins memory for decoded images, may continue during the capture.
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            try:
                body()
            except Exception as error:
                failure = error  # ending the capture may raise a less helpful one
                raise
    except Exception as error:
        _abandon(graph, device, pool)
        # A failed capture leaves the generator in its capturing state, in which the next dropout would fail.
        generator.graphsafe_set_state(drawn)
        failure = failure or error
    if failure is None:
        return graph.replay
    try:
        raise failure
    finally:
        # A reference from this frame would keep all tensors of `body` alive.
        del failure


# Graphs whose capture did not end. Torch's allocator may still call them, so they are never freed.
_abandoned: list[torch.cuda.CUDAGraph] = []


def _abandon(graph: torch.cuda.CUDAGraph, device: int, pool: Any) -> None:
    """Free the memory of a failed capture; torch does so itself only if the capture could be ended."""
    try:
        graph.pool()
    except RuntimeError:  # it could not be ended
        _abandoned.append(graph)
        # As torch.cuda.use_mem_pool does. If a torch has no such functions, the memory stays reserved.
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)


class Replayed:
    """A function without arguments that always uses the same memory, run as a CUDA graph.

    The first call runs it eagerly, which is the warm-up that capturing needs; the second captures it; later ones replay
    it. If capturing fails, or while the caller captures a graph, it runs eagerly.

    Args:
        body: launches work and reads no values from the device.
        device: where it works.
        capture: captures it; None: never.
    """

    def __init__(
        self, body: Callable[[], None], device: torch.device, capture: Capture | None
    ) -> None:
        self._body, self._device, self._capture = body, device, capture
        self._warm = False
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        if capturing(self._device) or self._capture is None or not self._warm:
            self._body()
            self._warm = True
            return
        if self._replay is None:
            try:
                self._replay = self._capture(self._body, None)
            except RuntimeError:  # what torch raises for an operation that cannot be captured
                self._capture = None
                self._body()
                return
        self._replay()


class _Captured(NamedTuple):
    buffers: Sequence[Tensor]
    replay: Callable[[], None]


class GraphRunner:
    """Runs steps on a list of tensors: eagerly in the first call with given shapes, by a CUDA graph in later ones.

    The first call is also the warm-up that capturing needs. If a capture fails, that is logged once, and everything
    runs eagerly from then on. While the caller captures a graph, steps are launched into that graph.

    Args:
        capture: captures steps.
    """

    def __init__(self, capture: Capture = capture_cuda) -> None:
        self.capture = capture
        self._graphs: OrderedDict[Hashable, _Captured | None] = OrderedDict()
        self._pool: Any = None
        self._broken = False

    def run(
        self,
        key: Hashable,
        tensors: Sequence[Tensor],
        step: Callable[[Sequence[Tensor]], None],
        steps: int,
        *,
        written: int,
    ) -> None:
        """`step(tensors)`, `steps` times.

        Args:
            key: calls with equal keys, and tensors of equal shapes, strides, dtypes and devices, may share a graph: a
                step launches the same kernels and reads the same other memory.
            tensors: what a step works on, those that it writes in place first.
            step: launches one step on such tensors, without reading values from the device.
            steps: number of steps.
            written: number of tensors that a step writes; it only reads the others.
        """
        if capturing(tensors[0].device):
            for _ in range(steps):
                step(tensors)
            return
        key = (key, tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors))
        at_once = _steps_at_once(steps)
        captured = None if self._broken else self._find((key, at_once), tensors, step, at_once)
        if captured is None:
            for _ in range(steps):
                step(tensors)
            return
        _copy(captured.buffers, tensors)
        for _ in range(steps // at_once):
            captured.replay()
        _copy(tensors[:written], captured.buffers[:written])

    def forget(self) -> None:
        """Drop all graphs, because the memory that they read is freed or reused."""
        self._graphs.clear()

    def _find(
        self,
        key: Hashable,
        tensors: Sequence[Tensor],
        step: Callable[[Sequence[Tensor]], None],
        at_once: int,
    ) -> _Captured | None:
        """The graph of a key, captured in the second call; None in the first, or if capturing fails."""
        if key not in self._graphs:
            self._remember(key, None)
            return None
        captured = self._graphs[key]
        if captured is None:
            captured = self._make(tensors, step, at_once)
            if captured is None:
                return None
        self._remember(key, captured)
        return captured

    def _remember(self, key: Hashable, captured: _Captured | None) -> None:
        self._graphs[key] = captured
        self._graphs.move_to_end(key)
        while len(self._graphs) > _KEPT:
            self._graphs.popitem(last=False)

    def _make(
        self, tensors: Sequence[Tensor], step: Callable[[Sequence[Tensor]], None], at_once: int
    ) -> _Captured | None:
        buffers = [tensor.clone() for tensor in tensors]

        def body() -> None:
            for _ in range(at_once):
                step(buffers)

        try:
            if self._pool is None and tensors[0].is_cuda:
                self._pool = torch.cuda.graph_pool_handle()
            return _Captured(buffers, self.capture(body, self._pool))
        except RuntimeError as error:  # what torch raises for an operation that cannot be captured
            self._broken = True
            self.forget()
            reason = str(error).strip().splitlines()[0]
            logger.warning(
                "attack: its steps cannot be captured in a CUDA graph (%s); running eagerly", reason
            )
            return None


def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy tensors with one kernel per dtype: separate launches would take longer than the copies."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(into, values, strict=True):
        places, some = by_dtype.setdefault(place.dtype, ([], []))
        places.append(place)
        some.append(value)
    for places, some in by_dtype.values():
        torch._foreach_copy_(places, some)


def _steps_at_once(steps: int) -> int:
    """Steps per graph: the largest divisor of `steps` up to _LONGEST."""
    return next(n for n in range(min(steps, _LONGEST), 0, -1) if steps % n == 0)
