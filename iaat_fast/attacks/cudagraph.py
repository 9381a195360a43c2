"""CUDA graphs: steps captured once per shape and replayed, without Python and without gaps between kernels."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger("iaat_fast")

# Shapes whose graphs are kept: a data set's batches, its last one, and the buckets of the survivors' batches.
_KEPT = 8
# Steps in one graph. A replay costs the host about 10 us, nothing against 20 passes through a network, and a capture
# takes as long as an eager run.
_LONGEST = 20

Capture = Callable[[Callable[[], None], Any], Callable[[], None]]


def capturing(device: torch.device) -> bool:
    """Whether what is launched now goes into a CUDA graph that the caller is capturing, and is not run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def capture_cuda(
    body: Callable[[], None], pool: Any, stream: torch.cuda.Stream | None = None
) -> Callable[[], None]:
    """Capture what `body` launches, on a stream if given, into memory of `pool` or, for None, its own.

    Returns what replays it. Where capturing fails everything is as before, and what `body` raised is raised, else what
    ended the capture.
    """
    device = torch.cuda.current_device() if stream is None else stream.device_index
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    generator, graph = torch.cuda.default_generators[device], torch.cuda.CUDAGraph()
    drawn = generator.clone_state()
    failure: Exception | None = None
    try:
        # The outer block gives the current stream back: torch's own does not where the capture fails. Other threads,
        # such as the one that pins memory for decoded images, continue meanwhile ("thread_local").
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            try:
                body()
            except Exception as error:
                failure = error  # ending the capture may raise another, which says less
                raise
    except Exception as error:
        _abandon(graph, device, pool)
        # A capture that did not end leaves the generator in the belief that it continues: the next dropout would fail.
        generator.graphsafe_set_state(drawn)
        failure = failure or error
    if failure is None:
        return graph.replay
    try:
        raise failure
    finally:
        # Kept by this frame, or as the context of another error, it would keep all the body's tensors.
        del failure


# Torch's allocator may ask a graph whose capture did not end whether it continues, so none of them is ever freed.
_abandoned: list[torch.cuda.CUDAGraph] = []


def _abandon(graph: torch.cuda.CUDAGraph, device: int, pool: Any) -> None:
    """Give back the memory of a capture that failed, which torch does only where it could be ended."""
    try:
        graph.pool()
    except RuntimeError:  # it was not
        _abandoned.append(graph)
        # As torch.cuda.use_mem_pool does. They are not public: without them the memory would stay reserved.
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(device, pool)
            torch._C._cuda_releasePool(device, pool)


class Replayed:
    """A function of no arguments that always reads and writes the same memory, as one graph.

    The first call runs it, which is the warm-up that capturing needs, the second captures it, later ones replay. Where
    capturing fails, or the caller is capturing a graph, it is run.

    Args:
        body: launches work, and looks at no values.
        device: where it works.
        capture: how it is captured, None not at all; the tests replace it.
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
    """Runs steps that read and write a fixed list of tensors: eagerly the first time, captured afterwards.

    The first call with a shape is the warm-up that capturing needs, and real work too. A capture that fails is reported
    once, and everything runs eagerly from then on. Where the caller is capturing a graph, steps are launched into that.

    Args:
        capture: how steps are captured; the tests replace it.
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
            key: what, besides the tensors' shapes, strides, dtypes and devices, decides which kernels a step launches
                and which other memory it reads: equal keys may share a graph.
            tensors: what a step works on, first those that it writes in place.
            step: launches one step on such tensors, with no look at their values.
            steps: how many.
            written: how many of the tensors a step writes; the others it only reads.
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
        """Drop all graphs: the memory that they read is gone or means something else."""
        self._graphs.clear()

    def _find(
        self,
        key: Hashable,
        tensors: Sequence[Tensor],
        step: Callable[[Sequence[Tensor]], None],
        at_once: int,
    ) -> _Captured | None:
        """The graph of a key; None the first time, which is the warm-up."""
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
    """Copy tensors with one kernel for all of a dtype: a launch each would take longer than the copies."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(into, values, strict=True):
        places, some = by_dtype.setdefault(place.dtype, ([], []))
        places.append(place)
        some.append(value)
    for places, some in by_dtype.values():
        torch._foreach_copy_(places, some)


def _steps_at_once(steps: int) -> int:
    """The largest divisor of `steps` up to the longest graph."""
    return next(n for n in range(min(steps, _LONGEST), 0, -1) if steps % n == 0)
