"""What the kernels share: conversions to and from the arithmetic's type, torch's clamp, a step; and their launches.

Arithmetic is that of reference.py and primitives.py, rounding for rounding: compiled without contraction into fused
multiply-adds. Whatever decides the code (candidates, classes, channels, which path) is a `constexpr`, in capitals; the
interpreter of Triton 3.6 cannot count a loop by anything else.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

# 4 warps with two vectors of 16 bytes a thread: in a step six loads in flight before the first is needed.
VECTORS = 256
WARPS = 4
INT32_MAX = 2**31 - 1
# Unlike 3.9, Triton 3.6 fuses multiplications and additions unless it is told not to.
BITS = {"enable_fp_fusion": False}

# The interpreter of Triton 3.6 to 3.9 truncates where bfloat16 is to be rounded, and reads its subnormals as 0.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widened(value, dtype: tl.constexpr):
    """value in dtype, which holds it exactly."""
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
    """Lets NaN pass, as torch.clamp does."""
    raised = tl.where(lo > value, lo, value)
    return tl.where(hi < raised, hi, raised)


@triton.jit
def signed(step, slope):
    """step with the sign of slope; 0 where that is zero or NaN."""
    return tl.where(slope < 0, -step, tl.where(slope > 0, step, 0.0))


@triton.jit
def projected(value, centre, radius, low, high):
    """value, drawn into the ball and the box."""
    return clamp(centre + clamp(value - centre, -radius, radius), low, high)


@triton.jit
def count(counter, found):
    """Most tiles find nothing, and leave the one counter of all programs alone."""
    total = tl.sum(tl.sum(found, 1), 0)
    tl.atomic_add(counter, total.to(tl.int64), total > 0, sem="relaxed")


def wide(elements: int) -> bool:
    """Whether so many elements need 64 bits to count."""
    return elements > INT32_MAX


def on(device: torch.device) -> Any:
    """Triton launches on the current device, whichever its arguments lie on."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
