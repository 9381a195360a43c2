"""The ops that read logits: the saturation-proof cotangent, and Algorithm 2's choice of radii."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from iaat_fast.ops import checks, primitives
from iaat_fast.ops.layout import written
from iaat_fast.ops.triton.common import BITS, WARPS, clamp, on, rounded, widened

_WIDTH = 1024  # maximum number of classes processed at a time

_SATURATION = tl.constexpr(1 / 4096)  # as in primitives.py


@triton.jit
def saturation_proof_kernel(
    out,
    plain,
    logits,
    y,
    samples,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One row of ce_cotangent per program, WIDTH classes at a time; `plain` is softmax - onehot.

    Not in place, because a fast warp could overwrite entries that another one still has to read.
    """
    real = plain.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    out, plain, logits = out + row * CLASSES, plain + row * CLASSES, logits + row * CLASSES
    label = tl.load(y + row % samples)
    known = (label >= 0) & (label < CLASSES)
    missing = -tl.load(plain + label, known, other=float("nan"))  # 1 - p_y
    if missing <= _SATURATION:
        largest = tl.full((), float("-inf"), real)
        for first in range(0, CLASSES, WIDTH):
            column = first + tl.arange(0, WIDTH)
            other = (column < CLASSES) & (column != label)
            z = widened(tl.load(logits + column, other, other=float("-inf")), real)
            largest = tl.maximum(largest, tl.max(z, 0))
        # In float64 the sum of the terms that matter is exact in any order, so backends need not use the same one.
        others = tl.full((), 0.0, tl.float64)
        for first in range(0, CLASSES, WIDTH):
            column = first + tl.arange(0, WIDTH)
            other = (column < CLASSES) & (column != label)
            z = widened(tl.load(logits + column, other, other=float("-inf")), real)
            shifted = tl.where(z == float("-inf"), 0.0, _exp_nonpositive(z - largest))
            others += tl.sum(shifted.to(tl.float64), 0)
            tl.store(out + column, rounded(shifted, out.dtype.element_ty), other)
        tl.store(out + label, rounded(-others.to(real), out.dtype.element_ty))
    else:
        # If `missing` is NaN, because of NaN logits or a class out of range, it fills the row.
        scale = tl.where(missing == missing, _normalising_power(missing), missing)
        for first in range(0, CLASSES, WIDTH):
            column = first + tl.arange(0, WIDTH)
            value = tl.load(plain + column, column < CLASSES) * scale
            tl.store(out + column, rounded(value, out.dtype.element_ty), column < CLASSES)


@triton.jit
def _exp_nonpositive(x):
    """exp(x) for x <= 0, as in primitives.py."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        # Adding and subtracting 1.5 * 2**23 rounds to nearest even if |x| < 2**22; for larger |x| the result is 0.
        n = (x * 1.44269504 + 12582912.0) - 12582912.0
        r = (x - n * 0.693359375) - n * -2.12194440e-4
        p = r * (1 / 5040) + 1 / 720
        p = p * r + 1 / 120
        p = p * r + 1 / 24
        p = p * r + 1 / 6
        p = p * r + 0.5
        p = p * r + 1.0
        p = p * r + 1.0
        n = tl.where(n > -126.0, n, -126.0)
        power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        result = tl.where(x < -87.0, 0.0, p * power)
    return result


@triton.jit
def _normalising_power(value):
    """The power of two that scales a number in (2**-13, 1] into [0.5, 1)."""
    if value.dtype == tl.float64:
        exponent = (value.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        power = ((2045 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
        power = ((253 - exponent) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def select_epsilon_kernel(
    memory,
    index,
    logits,
    y,
    misclassified,
    eps,
    choice,
    size,
    samples,
    gamma,
    beta,
    keep,
    eps_min,
    eps_max,
    CLASSES: tl.constexpr,
    CLAMP_CANDIDATE: tl.constexpr,
    SAMPLES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Algorithm 2, for SAMPLES samples per program. An index out of range does not change the memory."""
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    inside = sample < samples
    # Positions beyond the last sample repeat it.
    at = tl.minimum(sample, samples - 1).to(tl.int64)
    label = tl.load(y + at)
    place = tl.load(index + at)
    known = (place >= 0) & (place < size)
    step = tl.cast(samples, tl.int64) * CLASSES
    row = logits + at * CLASSES
    robust_at_first = _is_argmax(row, label, CLASSES, SAMPLES, WIDTH)
    robust_at_second = _is_argmax(row + step, label, CLASSES, SAMPLES, WIDTH)
    chosen = tl.where(robust_at_first, 0, tl.where(robust_at_second, 1, 2))
    prev = tl.load(memory + place, known, other=float("nan"))
    candidate = tl.where(
        robust_at_first, prev + gamma, tl.where(robust_at_second, prev, prev - gamma)
    )
    if CLAMP_CANDIDATE:
        candidate = tl.where(candidate < 0, 0.0, candidate)
    if misclassified is not None:
        candidate = tl.where(tl.load(misclassified + at) != 0, 0.0, candidate)
    value = clamp(keep * prev + beta * candidate, eps_min, eps_max)
    tl.store(memory + place, value, inside & known)
    tl.store(eps + sample, value, inside)
    tl.store(choice + sample, tl.where(known, chosen, -1).to(tl.int64), inside)


@triton.jit
def _is_argmax(logits, label, CLASSES: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr):
    """Whether argmax of each row [SAMPLES] is its label; as in torch, NaN is largest and the first of equals wins."""
    real: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    known = (label >= 0) & (label < CLASSES)
    mine = widened(tl.load(logits + label, known, other=0.0), real)[:, None]
    beaten = tl.zeros((SAMPLES, WIDTH), tl.int32)
    for first in range(0, CLASSES, WIDTH):
        column = (first + tl.arange(0, WIDTH))[None, :]
        z = widened(tl.load(logits[:, None] + column, column < CLASSES, other=float("-inf")), real)
        before = column < label[:, None]
        as_large = (z == mine) | (z != z) & (mine != mine)
        larger = (z > mine) | (z != z) & (mine == mine)
        beaten += ((larger | as_large & before) & (column < CLASSES)).to(tl.int32)
    return known & (tl.sum(beaten, 1) == 0)


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    if logits.is_cpu:
        checks.class_values(y, logits.shape[1])
        checks.logit_values(logits)
    logits, y = logits.contiguous(), y.contiguous()
    rows, classes = logits.shape
    # torch's own kernel, so that softmax - onehot has the bits of autograd. Classes are clamped, as one out of range
    # would kill the process; the kernel below makes its row NaN.
    plain = primitives.softmax_minus_onehot(
        logits if logits.dtype == torch.float64 else logits.float(), y.clamp(0, classes - 1)
    )
    out = torch.empty_like(logits)
    if rows:
        width = min(triton.next_power_of_2(classes), _WIDTH)
        with on(logits.device):
            saturation_proof_kernel[(rows,)](
                out,
                plain,
                logits,
                y,
                y.shape[0],
                CLASSES=classes,
                WIDTH=width,
                num_warps=1 if width <= 128 else WARPS,
                **BITS,
            )
    return out


def select_epsilon_(
    memory: Tensor,
    index: Tensor,
    logits: Tensor,
    y: Tensor,
    gamma: float,
    beta: float,
    eps_min: float,
    eps_max: float,
    clamp_candidate: bool = False,
    misclassified: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    samples, classes = index.shape[0], logits.shape[1]
    if logits.is_cpu:
        checks.index_values(index, memory.shape[0])
        checks.class_values(y, classes)
        checks.logit_values(logits)
    values = memory.contiguous()
    eps = memory.new_empty(samples)
    choice = torch.empty(samples, dtype=torch.int64, device=memory.device)
    if samples:
        width = min(triton.next_power_of_2(classes), _WIDTH)
        at_once = max(1, 128 // width)
        with on(memory.device):
            select_epsilon_kernel[(triton.cdiv(samples, at_once),)](
                values,
                index.contiguous(),
                logits.contiguous(),
                y.contiguous(),
                None if misclassified is None else misclassified.contiguous(),
                eps,
                choice,
                memory.shape[0],
                samples,
                gamma,
                beta,
                1 - beta,
                eps_min,
                eps_max,
                CLASSES=classes,
                CLAMP_CANDIDATE=clamp_candidate,
                SAMPLES=at_once,
                WIDTH=width,
                num_warps=1 if width <= 128 else WARPS,
                **BITS,
            )
        written(memory, values)
    return eps, choice
