"""What several kernels share: from the images' type to the arithmetic's and back, and torch's clamp."""

from __future__ import annotations

import triton
import triton.language as tl

# The interpreter of Triton 3.6 to 3.9 truncates where bfloat16 is to be rounded, and reads its subnormals as 0.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widened(value, dtype: tl.constexpr):
    """value in dtype, which holds it exactly."""
    if _INTERPRETED and value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        result = bits.to(dtype, bitcast=True)
    else:
        result = value.to(dtype)
    return result


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """value in dtype, rounded to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
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
