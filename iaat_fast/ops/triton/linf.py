"""The signed gradient step and the projection onto balls inside a box.

Tiles are [vectors, elements of a vector]: each thread reads and writes 16 bytes at a time, and finds the row of a
vector, not of each element, where rows are long enough.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from iaat_fast.ops import checks
from iaat_fast.ops.layout import in_one_layout, memory_format, written
from iaat_fast.ops.triton.common import (
    BITS,
    VECTORS,
    WARPS,
    count,
    on,
    projected,
    rounded,
    signed,
    wide,
    widened,
)

# How the row of an element is found, depending on the length of rows: a tile contains at most one border between rows;
# a vector does; or rows are shorter than vectors.
ONE_BORDER_A_TILE = tl.constexpr(0)
ONE_BORDER_A_VECTOR = tl.constexpr(1)
ANY_BORDERS = tl.constexpr(2)


@triton.jit
def linf_kernel(
    out,
    x_adv,
    grad,
    x,
    eps,
    alpha,
    stats,
    samples,
    row_elems,
    vectors,
    tail,
    lo: tl.float64,
    hi: tl.float64,
    COPIES: tl.constexpr,
    TARGETED: tl.constexpr,
    TAIL: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    VEC: tl.constexpr,
):
    """Project x_adv, after a signed step if grad is given. One program per HEIGHT vectors of x, for all candidates.

    x has `vectors` whole vectors and `tail` more elements (only if COPIES, the number of candidates, is 1). ROWS: how
    rows are found. WIDE: positions need 64 bits.
    """
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    candidate_elems = tl.cast(vectors, tl.int64) * VEC
    inside = (program * HEIGHT + tl.arange(0, HEIGHT) < vectors)[:, None]
    _linf_tile(
        out,
        x_adv,
        grad,
        x,
        eps,
        alpha,
        stats,
        program * (HEIGHT * VEC),
        inside,
        samples,
        row_elems,
        candidate_elems,
        lo,
        hi,
        COPIES,
        TARGETED,
        ROWS,
        HEIGHT,
        VEC,
    )
    if TAIL:  # noqa: SIM102 (Triton drops the branch only where the whole condition is a constant)
        if program == tl.num_programs(0) - 1:
            _linf_tile(
                out,
                x_adv,
                grad,
                x,
                eps,
                alpha,
                stats,
                candidate_elems,
                tl.arange(0, VEC)[None, :] < tail,
                samples,
                row_elems,
                candidate_elems,
                lo,
                hi,
                1,
                TARGETED,
                ANY_BORDERS,
                1,
                VEC,
            )


@triton.jit
def _linf_tile(
    out,
    x_adv,
    grad,
    x,
    eps,
    alpha,
    stats,
    start,
    inside,
    samples,
    row_elems,
    candidate_elems,
    lo,
    hi,
    COPIES: tl.constexpr,
    TARGETED: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    VEC: tl.constexpr,
):
    """One tile [HEIGHT, VEC], which begins at element `start` of x, for each candidate."""
    real = eps.dtype.element_ty
    vector = tl.arange(0, HEIGHT)
    lane = tl.arange(0, VEC)[None, :]
    place = vector[:, None] * VEC + lane
    centre = widened(tl.load(x + start + place, inside), real)

    # `second` marks the elements that lie in the row after `row`.
    row = start // row_elems
    rest = start - row * row_elems
    if ROWS == ONE_BORDER_A_TILE:
        second = place >= tl.minimum(row_elems - rest, HEIGHT * VEC).to(tl.int32)
    elif ROWS == ONE_BORDER_A_VECTOR:
        at = rest.to(tl.int32) + vector * VEC
        skipped = at // row_elems
        row = (row + skipped)[:, None]
        second = lane >= ((skipped + 1) * row_elems - at)[:, None]
    else:
        row = row + (rest.to(tl.int32) + place) // row_elems
        second = place < 0
    after = tl.minimum(row + 1, samples - 1)
    row = tl.minimum(row, samples - 1)

    low, high = tl.full((1, 1), lo, real), tl.full((1, 1), hi, real)
    if stats is not None:
        zeros = tl.zeros((HEIGHT, VEC), tl.int32)
        nans = tl.zeros((HEIGHT, VEC), tl.int32)
    for k in range(COPIES):
        begin = start + k * candidate_elems
        moved = widened(tl.load(x_adv + begin + place, inside), real)
        rows = k * samples
        if grad is not None:
            # Outside the tensor the slope is 1, which the statistics do not count.
            slope = widened(tl.load(grad + begin + place, inside, other=1.0), real)
            step = tl.where(second, tl.load(alpha + rows + after), tl.load(alpha + rows + row))
            if TARGETED:
                step = -step
            moved += signed(step, slope)
            if stats is not None:
                zeros += (slope == 0).to(tl.int32)
                nans += (slope != slope).to(tl.int32)
        radius = tl.where(second, tl.load(eps + rows + after), tl.load(eps + rows + row))
        moved = projected(moved, centre, radius, low, high)
        tl.store(out + begin + place, rounded(moved, out.dtype.element_ty), inside)
    if stats is not None:
        count(stats, zeros)
        count(stats + 1, nans)


def project_linf(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    if eps.is_cpu:
        checks.radii_values(eps)
    x_adv, x = in_one_layout(x_adv, x)
    out = torch.empty_like(x_adv, memory_format=memory_format(x_adv))
    _launch(out, x_adv, None, x, eps.contiguous(), None, None, lo, hi, False)
    return out


def pgd_step_linf_(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    lo: float,
    hi: float,
    targeted: bool,
    stats: Tensor | None,
) -> None:
    if eps.is_cpu:
        checks.step_values(alpha, eps)
    target, grad, x = in_one_layout(x_adv, grad, x)
    counts = None if stats is None else stats.contiguous()
    _launch(target, target, grad, x, eps.contiguous(), alpha.contiguous(), counts, lo, hi, targeted)
    written(x_adv, target)
    if stats is not None and counts is not None:
        written(stats, counts)


def _launch(
    out: Tensor,
    x_adv: Tensor,
    grad: Tensor | None,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor | None,
    stats: Tensor | None,
    lo: float,
    hi: float,
    targeted: bool,
) -> None:
    """Launch the step, or only the projection if grad is None, on dense tensors of one memory format."""
    elements, samples = x.numel(), x.shape[0]
    if not elements:
        return
    row_elems, copies = elements // samples, x_adv.shape[0] // samples
    vec = 16 // x.element_size()
    if copies > 1 and elements % vec:  # the candidates' vectors would not be aligned
        vec = 1
    height = VECTORS * 16 // x.element_size() // vec
    if row_elems >= height * vec:
        rows = ONE_BORDER_A_TILE
    else:
        rows = ONE_BORDER_A_VECTOR if row_elems >= vec else ANY_BORDERS
    vectors, tail = divmod(elements, vec)
    with on(x.device):
        linf_kernel[(max(1, triton.cdiv(vectors, height)),)](
            out,
            x_adv,
            grad,
            x,
            eps,
            alpha,
            stats,
            samples,
            row_elems,
            vectors,
            tail,
            lo,
            hi,
            COPIES=copies,
            TARGETED=targeted,
            TAIL=tail > 0,
            WIDE=wide(elements + height * vec),
            ROWS=rows.value,
            HEIGHT=height,
            VEC=vec,
            num_warps=WARPS,
            **BITS,
        )
