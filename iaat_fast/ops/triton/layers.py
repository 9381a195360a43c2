"""Elementwise ops of a network under attack and of its backward pass.

Tiles are [vectors, elements of a vector]. A tensor is a whole number of vectors, of 16 bytes or, if its size or its
channels do not allow that, of one element, so that a channel is looked up once per vector.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from iaat_fast.ops.layout import channels_of, in_one_layout, like, memory_format, written
from iaat_fast.ops.triton.common import BITS, VECTORS, WARPS, clamp, on, rounded, wide, widened


@triton.jit
def relu_backward_kernel(
    grad,
    out,
    other,
    vectors,
    floor: tl.float64,
    ceiling: tl.float64,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    VEC: tl.constexpr,
):
    """Mask grad, or the sum of two gradients, by an activation. One program per HEIGHT vectors.

    WIDE: positions need 64 bits. A bound that is NaN blocks nothing.
    """
    dtype: tl.constexpr = grad.dtype.element_ty
    real: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    start, place, inside = _tile(vectors, WIDE, HEIGHT, VEC)
    slope = widened(tl.load(grad + start + place, inside), real)
    if other is not None:
        slope += widened(tl.load(other + start + place, inside), real)
    reached = widened(tl.load(out + start + place, inside), real)
    passed = tl.where(_blocked(reached, floor, ceiling, dtype, real), 0.0, slope)
    tl.store(grad + start + place, rounded(passed, dtype), inside)


@triton.jit
def scale_shift_relu_kernel(
    out,
    x,
    residual,
    scale,
    shift,
    channels,
    inner,
    vectors,
    floor: tl.float64,
    ceiling: tl.float64,
    NEIGHBOURS: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    VEC: tl.constexpr,
):
    """clamp(x * scale + shift); with a residual, x is first overwritten by x + residual."""
    dtype: tl.constexpr = x.dtype.element_ty
    real: tl.constexpr = scale.dtype.element_ty
    start, place, inside = _tile(vectors, WIDE, HEIGHT, VEC)
    value = widened(tl.load(x + start + place, inside), real)
    if residual is not None:
        value += widened(tl.load(residual + start + place, inside), real)
        total = rounded(value, dtype)
        tl.store(x + start + place, total, inside)
        value = widened(total, real)
    channel = _channel(start, channels, inner, NEIGHBOURS, HEIGHT, VEC)
    value = value * tl.load(scale + channel) + tl.load(shift + channel)
    low, high = tl.full((1, 1), floor, real), tl.full((1, 1), ceiling, real)
    tl.store(out + start + place, rounded(clamp(value, low, high), dtype), inside)


@triton.jit
def scale_shift_relu_backward_kernel(
    grad,
    out,
    scale,
    residual,
    channels,
    inner,
    vectors,
    floor: tl.float64,
    ceiling: tl.float64,
    NEIGHBOURS: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    VEC: tl.constexpr,
):
    """grad * scale where the activation passed it, else 0; plus the residual if there is one."""
    dtype: tl.constexpr = grad.dtype.element_ty
    real: tl.constexpr = scale.dtype.element_ty
    start, place, inside = _tile(vectors, WIDE, HEIGHT, VEC)
    slope = widened(tl.load(grad + start + place, inside), real)
    reached = widened(tl.load(out + start + place, inside), real)
    slope *= tl.load(scale + _channel(start, channels, inner, NEIGHBOURS, HEIGHT, VEC))
    passed = tl.where(_blocked(reached, floor, ceiling, dtype, real), 0.0, slope)
    if residual is not None:
        passed += widened(tl.load(residual + start + place, inside), real)
    tl.store(grad + start + place, rounded(passed, dtype), inside)


@triton.jit
def _tile(vectors, WIDE: tl.constexpr, HEIGHT: tl.constexpr, VEC: tl.constexpr):
    """The first element of this program's tile, the offset of each element, and which vectors lie in the tensor."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    vector = tl.arange(0, HEIGHT)[:, None]
    place = vector * VEC + tl.arange(0, VEC)[None, :]
    return program * (HEIGHT * VEC), place, program * HEIGHT + vector < vectors


@triton.jit
def _channel(
    start, channels, inner, NEIGHBOURS: tl.constexpr, HEIGHT: tl.constexpr, VEC: tl.constexpr
):
    """The channel of each vector, [HEIGHT, 1]; with NEIGHBOURS, of each element: consecutive channels per vector."""
    at = start + tl.arange(0, HEIGHT)[:, None] * VEC
    if NEIGHBOURS:
        channel = at % channels + tl.arange(0, VEC)[None, :]
    else:
        channel = at // inner % channels
    return channel


@triton.jit
def _blocked(reached, floor, ceiling, dtype: tl.constexpr, real: tl.constexpr):
    """Where the gradient of an activation with output `reached` is 0; bounds are rounded to the output's dtype."""
    low = widened(rounded(tl.full((1, 1), floor, real), dtype), real)
    high = widened(rounded(tl.full((1, 1), ceiling, real), dtype), real)
    return (reached <= low) | (reached >= high)


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> None:
    target, out = in_one_layout(grad, out)
    vec = 16 // grad.element_size()
    vec = vec if grad.numel() % vec == 0 else 1
    tensors = (target, out, like(target, other))
    _launch(relu_backward_kernel, tensors, vec, _blocking(floor, ceiling))
    written(grad, target)


def scale_shift_relu(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    (target,) = in_one_layout(x)
    out = torch.empty_like(x, memory_format=memory_format(x))
    tensors = (out, target, like(target, residual), scale.contiguous(), shift.contiguous())
    vec, where = _channels(target)
    _launch(scale_shift_relu_kernel, tensors, vec, where | {"floor": floor, "ceiling": ceiling})
    if residual is not None:
        written(x, target)
    return out


def scale_shift_relu_backward_(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    floor: float,
    ceiling: float,
) -> None:
    target, out = in_one_layout(grad, out)
    tensors = (target, out, scale.contiguous(), like(target, residual))
    vec, where = _channels(target)
    _launch(scale_shift_relu_backward_kernel, tensors, vec, where | _blocking(floor, ceiling))
    written(grad, target)


def _blocking(floor: float, ceiling: float) -> dict[str, Any]:
    """The bounds for `_blocked`; NaN, which no comparison matches, for infinite ones, as these block nothing."""
    return {
        "floor": math.nan if floor == -math.inf else floor,
        "ceiling": math.nan if ceiling == math.inf else ceiling,
    }


def _channels(x: Tensor) -> tuple[int, dict[str, Any]]:
    """The vector length for a dense x, with one channel or consecutive ones per vector, and the kernel's arguments."""
    channels, inner = channels_of(x)
    if channels == 1:
        inner = x.numel()
    vec = 16 // x.element_size()
    neighbours = inner == 1 and channels % vec == 0
    if not neighbours and inner % vec:
        vec = 1
    return vec, {"channels": channels, "inner": inner, "NEIGHBOURS": neighbours}


def _launch(
    kernel: Any, tensors: tuple[Tensor | None, ...], vec: int, arguments: dict[str, Any]
) -> None:
    """Launch one program per VECTORS * 16 bytes of the first tensor."""
    first = tensors[0]
    assert first is not None
    elements = first.numel()
    if not elements:
        return
    vectors, height = elements // vec, VECTORS * 16 // first.element_size() // vec
    with on(first.device):
        kernel[(triton.cdiv(vectors, height),)](
            *tensors,
            vectors=vectors,
            WIDE=wide(elements + height * vec),
            HEIGHT=height,
            VEC=vec,
            num_warps=WARPS,
            **arguments,
            **BITS,
        )
