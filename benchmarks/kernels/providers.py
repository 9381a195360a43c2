"""The providers: the backends that load on a device and two baselines, each compared with the reference first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import expressions
from benchmarks.kernels.cases import MUTATED, Case
from iaat_fast.ops import backends, reference

BACKENDS = ("native", "triton", "reference")
BASELINES = ("eager", "compile")

CHUNK = 2**22
"""Elements of a random start that the reference draws at once: it holds some thirty int64 tensors of the size."""

Call = Callable[..., object]


class Missing(Exception):
    """A provider is not available here; the message says why."""


def provider(name: str, case: Case, device: torch.device) -> Call:
    """A function of the arguments of the case's schema (baselines: of those that `prepared` makes).

    Raises:
        Missing: the backend does not load on this device, or has no such op.
    """
    if name == "eager":
        return _expression(case)
    if name == "compile":
        # Without a reset, the ninth shape of an expression would reach torch's limit of recompilations.
        torch.compiler.reset()
        return torch.compile(_expression(case), fullgraph=True, dynamic=False)
    module = _module(name, device)
    if not hasattr(module, case.op):
        raise Missing(f"{name} has no {case.op}")
    return getattr(module, case.op)


def _expression(case: Case) -> Call:
    return getattr(expressions, case.op)


def _module(name: str, device: torch.device) -> object:
    try:
        return backends.load(name, device)
    except backends.Unavailable as error:
        raise Missing(str(error)) from error


def expected(case: Case, args: tuple[Any, ...]) -> list[Tensor]:
    """The reference's results for copies of the arguments."""
    if case.op == "random_start_linf":
        return [_reference_start(*args)]
    return outcome(case, getattr(reference, case.op), args)


def fault(
    name: str, case: Case, call: Call, args: tuple[Any, ...], right: list[Tensor]
) -> str | None:
    """What is wrong with a provider's result, or None.

    A backend must give the reference's bits, except the stem, whose sums have no fixed order. A baseline computes
    something close (other roundings, another generator, no proof against saturation) and is held to what it has in
    common with the op.
    """
    if name not in BASELINES:
        results = outcome(case, call, args)
        return _STEM[case.op](results, right) if case.op in _STEM else _different(results, right)
    copies = _copies(args)
    result = call(*expressions.prepared(case.op, copies))
    return _COMPARE[case.op](result, right, copies)


def outcome(case: Case, call: Call, args: tuple[Any, ...]) -> list[Tensor]:
    """The results of a call: the arguments that it writes and what it returns."""
    copies = _copies(args)
    returned = call(*copies)
    tensors = returned if isinstance(returned, tuple) else (returned,)
    written = [copies[position] for position in MUTATED.get(case.op, ())]
    return [t for t in (*written, *tensors) if isinstance(t, Tensor)]


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def _different(actual: list[Tensor], right: list[Tensor]) -> str | None:
    if len(actual) != len(right):
        return f"{len(actual)} results, expected {len(right)}"
    for ours, theirs in zip(actual, right, strict=True):
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return f"{ours.dtype} {list(ours.shape)}, expected {theirs.dtype} {list(theirs.shape)}"
        wrong = ~((ours == theirs) | (ours.isnan() & theirs.isnan()))
        if count := int(wrong.sum()):
            first = f"{ours[wrong][0].item()!r}, expected {theirs[wrong][0].item()!r}"
            return f"{count} of {wrong.numel()} entries differ from the reference, first {first}"
    return None


def _reference_start(
    x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
) -> Tensor:
    """The reference, some rows at a time, with the same result: the noise depends only on sample and candidate."""
    n, step = len(x), max(CHUNK // x[0].numel(), 1)
    pieces = []
    for row in range(0, len(eps), n):
        stream = seed + torch.tensor([0, 0, row // n], device=seed.device)
        for first in range(0, n, step):
            part = slice(first, first + step)
            radii = eps[row : row + n][part]
            pieces.append(reference.random_start_linf(x[part], radii, stream, index[part], lo, hi))
    return torch.cat(pieces)


def _close(result: Tensor, right: list[Tensor], args: tuple[Any, ...]) -> str | None:
    """Within a few roundings of the dtype at 1, the largest pixel."""
    bound = 8 * torch.finfo(right[0].dtype).eps
    worst = (result.reshape(right[0].shape).float() - right[0].float()).abs().max().item()
    return (
        None if worst <= bound else f"differs from the reference by {worst:g}, more than {bound:g}"
    )


def _all_close(
    results: Tensor | tuple[Tensor, ...], right: list[Tensor], args: tuple[Any, ...]
) -> str | None:
    """What a pass writes and returns, in this order. No value is beyond 4."""
    if isinstance(results, Tensor):
        results = (results,)
    faults = (_close(*pair, args) for pair in zip(results, ([r] for r in right), strict=True))
    return next((found for found in faults if found), None)


def _close_directions(result: Tensor, right: list[Tensor], args: tuple[Any, ...]) -> str | None:
    """Rows that are equal up to a positive factor."""
    rows, expected_rows = (t.float() / t.float().abs().amax(1, True) for t in (result, right[0]))
    return _close(rows.to(result.dtype), [expected_rows.to(result.dtype)], args)


def _close_selection(
    result: tuple[Tensor, Tensor], right: list[Tensor], args: tuple[Any, ...]
) -> str | None:
    if not torch.equal(result[1], right[2]):
        return "other choices than the reference"
    return _close(result[0], [right[1]], args)


def _in_ball(result: Tensor, right: list[Tensor], args: tuple[Any, ...]) -> str | None:
    """For noise of another generator: it is inside the box and the ball, and not all equal."""
    x, eps = args[0], args[1]
    distance = (result.float() - x.float()).abs().reshape(len(eps), -1).amax(1)
    slack = 4 * torch.finfo(x.dtype).eps
    inside = bool((distance <= eps + slack).all()) and result.min() >= 0 and result.max() <= 1
    return (
        None if inside and bool((distance > 0).any()) else "not noise inside the ball and the box"
    )


def _whole_pixels(result: Tensor, right: list[Tensor], args: tuple[Any, ...]) -> str | None:
    """For other random crops: the same shape and dtype, and pixels that are multiples of 1/255."""
    if (result.shape, result.dtype) != (right[0].shape, right[0].dtype):
        return f"{result.dtype} {list(result.shape)}"
    off = (result * 255 - (result * 255).round()).abs().max().item()
    return None if off < 1e-4 else "pixels that are no whole 255ths"


def _close_features(results: list[Tensor], right: list[Tensor]) -> str | None:
    """Within two roundings of the largest feature: float32 sums in another order are far closer."""
    largest = right[0].abs().max().item()
    bound = 2 * torch.finfo(right[0].dtype).eps * largest
    worst = (results[0].float() - right[0].float()).abs().max().item()
    return (
        None if worst <= bound else f"differs from the reference by {worst:g}, more than {bound:g}"
    )


def _same_steps(results: list[Tensor], right: list[Tensor]) -> str | None:
    """At most one step in a thousand differs: the sign of a gradient close to 0 depends on the order of summation."""
    most = right[0].numel() / 1000
    off = int((results[0] != right[0]).sum())
    if off > most:
        return f"{off} steps differ from the reference's, more than {most:g}"
    for ours, theirs in zip(results[1:], right[1:], strict=False):  # baselines do not count
        if (off := int((ours - theirs).abs().max())) > most:
            return f"counts {off} entries off the reference, more than {most:g}"
    return None


_STEM: dict[str, Callable[[list[Tensor], list[Tensor]], str | None]] = {
    "stem_conv_relu": _close_features,
    "stem_conv_step_": _same_steps,
}
_COMPARE: dict[str, Callable[..., str | None]] = {
    "project_linf": _close,
    "pgd_step_linf_": _close,
    "random_start_linf": _in_ball,
    "ce_cotangent": _close_directions,
    "select_epsilon_": _close_selection,
    "random_crop_flip": _whole_pixels,
    "stem_conv_relu": lambda result, right, _: _close_features([result], right),
    "stem_conv_step_": lambda result, right, _: _same_steps(
        [result.reshape(right[0].shape)], right
    ),
    "relu_backward_": _all_close,
    "scale_shift_relu": _all_close,
    "scale_shift_relu_backward_": _all_close,
}
