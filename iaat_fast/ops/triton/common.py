"""Shared by the kernels: conversions to and from the dtype of the arithmetic, clamp, step, and helpers of launches.

The arithmetic has the roundings of reference.py and primitives.py, so fused multiply-adds are switched off. Arguments
in capitals are `constexpr`: a kernel is compiled for each of their values. The interpreter of Triton 3.6 needs them for
the bounds of loops.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

# Vectors of 16 bytes, and warps, per program: two vectors per thread, so a step starts six loads before it needs one.
VECTORS = 256
WARPS = 4
INT32_MAX = 2**31 - 1
# Launch options. Triton 3.6, unlike 3.9, fuses multiplications and additions by default, which changes bits.
BITS = {"enable_fp_fusion": False}

# Whether the interpreter runs. In Triton 3.6 to 3.9 it truncates to bfloat16 instead of rounding, and reads bfloat16
# subnormals as 0, so the functions below convert by themselves.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widened(value, dtype: tl.constexpr):
    """value in dtype, which represents it exactly."""
    if INTERPRETED and value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        result = bits.to(dtype, bitcast=True)
    else:
        result = value.to(dtype)
    return result


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """value in dtype, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        upper = tl.where(value != value, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        result = upper.to(tl.uint16).to(dtype, bitcast=True)
    else:
        result = value.to(dtype)
    return result


@triton.jit
def clamp(value, lo, hi):
    """value clamped to [lo, hi]; as in torch.clamp, NaN stays NaN."""
    raised = tl.where(lo > value, lo, value)
    return tl.where(hi < raised, hi, raised)


@triton.jit
def signed(step, slope):
    """step * sign(slope); 0 where slope is 0 or NaN."""
    return tl.where(slope < 0, -step, tl.where(slope > 0, step, 0.0))


@triton.jit
def projected(value, centre, radius, low, high):
    """value projected onto the ball and then onto the box."""
    return clamp(centre + clamp(value - centre, -radius, radius), low, high)


@triton.jit
def count(counter, found):
    """Add the sum of a tile to the counter that all programs share; most tiles find nothing and skip it."""
    total = tl.sum(tl.sum(found, 1), 0)
    tl.atomic_add(counter, total.to(tl.int64), total > 0, sem="relaxed")


def wide(elements: int) -> bool:
    """Whether positions of so many elements need 64 bits."""
    return elements > INT32_MAX


def on(device: torch.device) -> Any:
    """A context in which Triton launches on this device: it launches on the current one, not that of its arguments."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
