"""What several kernels share: from the images' type to the arithmetic's and back, torch's clamp, a step."""

from __future__ import annotations

import triton
import triton.language as tl

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
