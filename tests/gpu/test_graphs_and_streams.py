"""Every op of every backend under capture, on other streams, threads and devices; none waits for the device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from iaat_fast.ops import reference

pytestmark = pytest.mark.gpu

SLOW = 100_000_000  # cycles: some 50 ms, far longer than it takes to enqueue a call

Arguments = Callable[..., tuple[Any, ...]]
On = Callable[[tuple[Any, ...]], tuple[Any, ...]]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def ours(device: torch.device, arguments: Arguments, on: On) -> Callable[..., tuple[Any, ...]]:
    """Arguments on the GPU, with K = 3 candidates where an op knows them."""
    return lambda op: on(arguments(op, k=3, ordinary=True))


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of one call, after one outside it, and the tensors that the call returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = call()
    results = returned if isinstance(returned, tuple) else (returned,)
    return graph, [t for t in results if isinstance(t, Tensor)]


def test_a_replay_computes_from_what_the_tensors_then_hold(
    backend: ModuleType,
    op: str,
    written: tuple[int, ...],
    ours: Any,
    arguments: Arguments,
    outcome: Any,
    assert_same: Any,
) -> None:
    static = ours(op)
    graph, results = capture(lambda: getattr(backend, op)(*static))
    others = arguments(op, k=3)
    for turned in (True, False):
        for tensor, fresh in zip(static, others, strict=True):
            if isinstance(tensor, Tensor):
                tensor.copy_(fresh.flip(0) if turned else fresh)
        again = tuple(a.clone() if isinstance(a, Tensor) else a for a in static)
        for result in results:
            result.zero_()  # a replay that does nothing must show
        graph.replay()
        found = [static[position].clone() for position in written] + results
        assert_same(outcome(reference, op, again), found)


def test_the_random_start_draws_anew_when_its_seed_tensor_changes(
    backend: ModuleType, ours: Any
) -> None:
    x, eps, seed, index, lo, hi = ours("random_start_linf")
    args = (index, lo, hi)
    graph, (start,) = capture(lambda: backend.random_start_linf(x, eps, seed, *args))
    drawn = []
    for key in (1, 2, 1):
        seed.copy_(torch.tensor([key, 0, 0]))
        graph.replay()
        drawn.append(start.clone())
        assert torch.equal(start, reference.random_start_linf(x, eps, seed, *args))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_crops_are_drawn_anew_when_their_seed_tensor_changes(
    backend: ModuleType, ours: Any
) -> None:
    images, index, seed, padding, flip = ours("random_crop_flip")
    graph, (crops,) = capture(lambda: backend.random_crop_flip(images, index, seed, padding, flip))
    drawn = []
    for key in (1, 2):
        seed.copy_(torch.tensor([key, 0]))
        graph.replay()
        drawn.append(crops.clone())
        expected = reference.random_crop_flip(images, index, seed, padding, flip)
        assert torch.equal(crops, expected)
    assert not torch.equal(*drawn)


def test_a_loop_of_steps_is_captured_once_and_replayed(backend: ModuleType, ours: Any) -> None:
    x_adv, grad, x, eps, alpha, lo, hi, _, stats = ours("pgd_step_linf_")
    begin = x_adv.clone()

    def three_steps(module: Any) -> None:
        x_adv.copy_(begin)
        stats.zero_()
        for _ in range(3):
            module.pgd_step_linf_(x_adv, grad, x, eps, alpha, lo, hi, False, stats)

    graph, _ = capture(lambda: three_steps(backend))
    grad.neg_()
    graph.replay()
    found = x_adv.clone(), stats.clone()
    three_steps(reference)
    assert torch.equal(found[0], x_adv)
    assert torch.equal(found[1], stats)


def test_a_call_waits_for_its_own_stream_and_only_that(
    backend: ModuleType,
    op: str,
    written: tuple[int, ...],
    ours: Any,
    outcome: Any,
    assert_same: Any,
) -> None:
    """The inputs appear on a side stream after 50 ms; a launch on any other stream would read what was there before."""
    real = ours(op)
    expected = outcome(reference, op, real)
    late = tuple(torch.zeros_like(a) if isinstance(a, Tensor) else a for a in real)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        outcome(backend, op, real)  # compiled, loaded, and the memory of this stream allocated
        side.synchronize()
        torch.cuda._sleep(SLOW)
        for tensor, value in zip(late, real, strict=True):
            if isinstance(tensor, Tensor):
                tensor.copy_(value)
        returned = getattr(backend, op)(*late)
        finished = side.record_event()
        assert not finished.query()  # the call came back before the device was done
    torch.cuda.synchronize()
    results = returned if isinstance(returned, tuple) else (returned,)
    found = [late[position] for position in written] + list(results)
    assert_same(expected, [t for t in found if isinstance(t, Tensor)])


def test_nothing_waits_for_the_device(backend: ModuleType, op: str, ours: Any) -> None:
    args = ours(op)
    getattr(backend, op)(*args)  # compiled, loaded
    torch.cuda.synchronize()
    with no_waiting():
        torch.cuda._sleep(SLOW)
        finished = torch.cuda.Event()
        finished.record()
        getattr(backend, op)(*args)
        assert not finished.query()


def test_a_wait_would_show(device: torch.device) -> None:
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1, device=device).item()


def test_a_failing_launch_names_its_op_and_leaves_the_device_usable(device: torch.device) -> None:
    """A device that is not there stands for any error of the CUDA runtime: others are hard to come by on purpose."""
    native_cuda = pytest.importorskip("iaat_fast.ops.native.cuda", exc_type=ImportError)
    x, radii = torch.rand(4, 8, device=device), torch.full((4,), 0.1, device=device)
    addresses = (torch.empty_like(x).data_ptr(), x.data_ptr(), x.data_ptr(), radii.data_ptr())
    with pytest.raises(RuntimeError, match=r"project_linf: CUDA error: cudaErrorInvalidDevice: .+"):
        native_cuda._C.cuda.project_linf(0, *addresses, 4, 4, 8, 0.0, 1.0, 99, 0)
    assert torch.equal(native_cuda.project_linf(x, x, radii, 0.0, 1.0), x)


def test_another_thread(
    backend: ModuleType, op: str, ours: Any, outcome: Any, assert_same: Any, device: torch.device
) -> None:
    """A fresh thread has its own current device and stream."""
    args, found = ours(op), []

    def work() -> None:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            found.extend(outcome(backend, op, args))
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_same(outcome(reference, op, args), found)


def test_a_device_other_than_the_current_one(
    backend: ModuleType, op: str, arguments: Arguments, outcome: Any, assert_same: Any
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    args = arguments(op, k=3, ordinary=True)
    there = tuple(a.to("cuda:1") if isinstance(a, Tensor) else a for a in args)
    with torch.cuda.device(1):
        expected = outcome(reference, op, there)
    with torch.cuda.device(0):
        found = outcome(backend, op, there)
        assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in found)
    assert_same(expected, found)
