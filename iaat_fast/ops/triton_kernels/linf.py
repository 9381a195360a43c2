"""The signed gradient step and the projection onto balls inside a box.

Tiles are [vectors, elements of a vector]: each thread reads and writes 16 bytes at a time, and looks a row up once per
vector at most.
"""

from __future__ import annotations

import triton
import triton.language as tl

from iaat_fast.ops.triton_kernels.arithmetic import count, projected, rounded, signed, widened

# How the row of an element is found, by the length of a row: the tile meets one border between rows at most; a vector
# does; or a row is shorter than a vector.
ONE_BORDER_A_TILE = tl.constexpr(0)
ONE_BORDER_A_VECTOR = tl.constexpr(1)
ANY_BORDERS = tl.constexpr(2)


@triton.jit
def linf(
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
    """The projection of x_adv, after a signed step where grad is given. One program per HEIGHT vectors of x.

    x has `vectors` whole vectors and `tail` elements more (then COPIES is 1). WIDE: its elements need 64 bits to count.
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
    """The tile [HEIGHT, VEC] of x that begins at element `start`, for each candidate."""
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
            # 1 where nothing is loaded: neither zero nor NaN.
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
