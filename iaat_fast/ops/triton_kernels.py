"""The Triton kernels; `triton.py` launches them. Their arithmetic is that of reference.py, rounding for rounding.

They are compiled without contraction into fused multiply-adds (`enable_fp_fusion=False`), and with TRITON_INTERPRET=1
they run on CPU tensors, in NumPy. Tiles are [vectors, elements of a vector]: each thread then reads and writes 16 bytes
at a time, and looks a row up once per vector.
"""

from __future__ import annotations

import triton
import triton.language as tl

# How the row of an element is found, by the length of a row: the tile meets one border between rows at most; a vector
# does; or a row is shorter than a vector.
ONE_BORDER_A_TILE = tl.constexpr(0)
ONE_BORDER_A_VECTOR = tl.constexpr(1)
ANY_BORDERS = tl.constexpr(2)

# The interpreter of Triton 3.6 to 3.9 truncates where bfloat16 is to be rounded.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_SATURATION = tl.constexpr(1 / 4096)  # as in reference.py
_AUGMENTATION = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _rounded(value, dtype: tl.constexpr):
    """value in dtype, rounded to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value != value, 0x7FC0, rounded).to(tl.uint16).to(dtype, bitcast=True)
    return value.to(dtype)


@triton.jit
def _clamp(value, lo, hi):
    """Lets NaN pass, as torch.clamp does."""
    raised = tl.where(lo > value, lo, value)
    return tl.where(hi < raised, hi, raised)


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
    centre = tl.load(x + start + place, inside).to(real)

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
        moved = tl.load(x_adv + begin + place, inside).to(real)
        rows = k * samples
        if grad is not None:
            # 1 where nothing is loaded: neither zero nor NaN.
            slope = tl.load(grad + begin + place, inside, other=1.0).to(real)
            step = tl.where(second, tl.load(alpha + rows + after), tl.load(alpha + rows + row))
            if TARGETED:
                step = -step
            moved += tl.where(slope < 0, -step, tl.where(slope > 0, step, 0.0))
            if stats is not None:
                zeros += (slope == 0).to(tl.int32)
                nans += (slope != slope).to(tl.int32)
        radius = tl.where(second, tl.load(eps + rows + after), tl.load(eps + rows + row))
        moved = _clamp(centre + _clamp(moved - centre, -radius, radius), low, high)
        tl.store(out + begin + place, _rounded(moved, out.dtype.element_ty), inside)
    if stats is not None:
        _count(stats, zeros)
        _count(stats + 1, nans)


@triton.jit
def _count(counter, found):
    """Most tiles find nothing, and leave the one counter of all programs alone."""
    total = tl.sum(tl.sum(found, 1), 0)
    tl.atomic_add(counter, total.to(tl.int64), total > 0)


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
    if TAIL:
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
def _philox(key, c0, c1, c2, c3):
    """Philox4x32-10 (Salmon et al., SC 2011): a 64-bit key, four counter words in uint32."""
    key0, key1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        low1 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = tl.add(key0, 0x9E3779B9, sanitize_overflow=False)
        key1 = tl.add(key1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _noise(word, radius):
    """The top 24 bits k as (2k + 1 - 2**24) / 2**24, strictly inside (-1, 1), times the radius."""
    centred = 2 * (word >> 8).to(tl.int32) + (1 - (1 << 24))
    return centred.to(radius.dtype) * (1.0 / (1 << 24)) * radius


@triton.jit
def random_start(
    out,
    x,
    eps,
    stream,
    index,
    samples,
    row_elems,
    row_blocks,
    blocks,
    lo: tl.float64,
    hi: tl.float64,
    COPIES: tl.constexpr,
    ENTRIES: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    LONG: tl.constexpr,
    ALIGN: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """x plus noise. One program per HEIGHT Philox blocks, of 4 elements each; a row begins with a block of its own.

    WHOLE: rows are whole blocks, so that the tile is contiguous, and tensors are multiples of ALIGN elements. LONG: rows
    are no shorter than a tile.
    """
    real = eps.dtype.element_ty
    key = tl.load(stream)
    restart = tl.load(stream + 1).to(tl.uint32) if ENTRIES > 1 else tl.full((), 0, tl.uint32)
    candidate = tl.load(stream + 2).to(tl.uint32) if ENTRIES > 2 else tl.full((), 0, tl.uint32)

    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    start = program * HEIGHT
    row = start // row_blocks
    rest = start - row * row_blocks
    number = tl.arange(0, HEIGHT)
    if LONG:
        skipped = (number >= tl.minimum(row_blocks - rest, HEIGHT).to(tl.int32)).to(tl.int32)
    else:
        skipped = (rest.to(tl.int32) + number) // row_blocks
    block = rest + number - skipped * row_blocks
    sample = tl.minimum(row + skipped, samples - 1)
    if WHOLE:
        place = tl.arange(0, HEIGHT * 4)
        first = tl.cast(start, tl.int64) * 4
        total = tl.multiple_of(blocks * 4, ALIGN)
        inside = start * 4 + place < total
        candidate_elems = tl.cast(total, tl.int64)
    else:
        element = block[:, None] * 4 + tl.arange(0, 4)[None, :]
        place = sample[:, None].to(tl.int64) * row_elems + element
        first = tl.full((), 0, tl.int64)
        inside = (start + number < blocks)[:, None] & (element < row_elems)
        candidate_elems = tl.cast(samples, tl.int64) * row_elems
    centre = tl.load(x + first + place, inside).to(real)
    number_in_set = tl.load(index + sample).to(tl.uint32)

    low, high = tl.full((1,), lo, real), tl.full((1,), hi, real)
    for k in range(COPIES):
        radius = tl.load(eps + k * samples + sample)
        c0, c1, c2, c3 = _philox(
            key, block.to(tl.uint32), number_in_set, candidate + tl.full((), k, tl.uint32), restart
        )
        even = tl.join(_noise(c0, radius), _noise(c2, radius))
        odd = tl.join(_noise(c1, radius), _noise(c3, radius))
        noise = tl.reshape(tl.join(even, odd), place.shape)
        begun = _rounded(_clamp(centre + noise, low, high), out.dtype.element_ty)
        tl.store(out + first + k * candidate_elems + place, begun, inside)


@triton.jit
def _exp_nonpositive(x):
    """exp(x) for x <= 0: in float32 out of single roundings, as in reference.py."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    # Adding and taking away 1.5 * 2**23 rounds to nearest even where |x| < 2**22; beyond, the result is 0 anyway.
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
    return tl.where(x < -87.0, 0.0, p * power)


@triton.jit
def _normalising_power(value):
    """The power of two that brings a number in (2**-13, 1] into [0.5, 1)."""
    if value.dtype == tl.float64:
        exponent = (value.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        return ((2045 - exponent) << 52).to(tl.float64, bitcast=True)
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
    return ((253 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def saturation_proof(
    out,
    plain,
    logits,
    y,
    samples,
    CLASSES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One row of ce_cotangent per program, WIDTH classes at a time; `plain` is softmax - onehot.

    Out of place: a warp that is ahead must not overwrite the entry that another is about to read.
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
            z = tl.load(logits + column, other, other=float("-inf")).to(real)
            largest = tl.maximum(largest, tl.max(z, 0))
        # Summed in float64: exact in any order for the terms that matter, so that backends need not agree on one.
        others = tl.full((), 0.0, tl.float64)
        for first in range(0, CLASSES, WIDTH):
            column = first + tl.arange(0, WIDTH)
            other = (column < CLASSES) & (column != label)
            z = tl.load(logits + column, other, other=float("-inf")).to(real)
            shifted = tl.where(z == float("-inf"), 0.0, _exp_nonpositive(z - largest))
            others += tl.sum(shifted.to(tl.float64), 0)
            tl.store(out + column, _rounded(shifted, out.dtype.element_ty), other)
        tl.store(out + label, _rounded(-others.to(real), out.dtype.element_ty))
    else:
        # NaN, of the logits or for a label that is no class, comes here and fills the row.
        scale = tl.where(missing == missing, _normalising_power(missing), missing)
        for first in range(0, CLASSES, WIDTH):
            column = first + tl.arange(0, WIDTH)
            value = tl.load(plain + column, column < CLASSES) * scale
            tl.store(out + column, _rounded(value, out.dtype.element_ty), column < CLASSES)


@triton.jit
def _is_argmax(logits, label, CLASSES: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr):
    """Whether torch.argmax of each row [SAMPLES] at `logits` is its label: NaN is largest, the first of equals wins."""
    real: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    known = (label >= 0) & (label < CLASSES)
    mine = tl.load(logits + label, known, other=0.0).to(real)[:, None]
    beaten = tl.zeros((SAMPLES, WIDTH), tl.int32)
    for first in range(0, CLASSES, WIDTH):
        column = (first + tl.arange(0, WIDTH))[None, :]
        z = tl.load(logits[:, None] + column, column < CLASSES, other=float("-inf")).to(real)
        before = column < label[:, None]
        as_large = (z == mine) | (z != z) & (mine != mine)
        larger = (z > mine) | (z != z) & (mine == mine)
        beaten += ((larger | as_large & before) & (column < CLASSES)).to(tl.int32)
    return known & (tl.sum(beaten, 1) == 0)


@triton.jit
def select_epsilon(
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
    """Algorithm 2 for SAMPLES samples a program. A sample outside the memory changes nothing there."""
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    inside = sample < samples
    # What lies beyond the last sample repeats it.
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
    value = _clamp(keep * prev + beta * candidate, eps_min, eps_max)
    tl.store(memory + place, value, inside & known)
    tl.store(eps + sample, value, inside)
    tl.store(choice + sample, tl.where(known, chosen, -1).to(tl.int64), inside)


@triton.jit
def _reflect(position, size):
    """Mirrored about the edge pixels, which are not repeated."""
    last = size - 1
    return last - tl.abs(last - tl.abs(position))


@triton.jit
def crop_flip(
    out,
    images,
    index,
    seed,
    size,
    height,
    width,
    padding,
    CHANNELS: tl.constexpr,
    ENTRIES: tl.constexpr,
    FLIP: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """PIXELS pixels of one sample per program; a sample number outside the images gives NaN."""
    sample = tl.program_id(0).to(tl.int64)
    number = tl.load(index + sample)
    key = tl.load(seed)
    stream = tl.load(seed + 1).to(tl.uint32) if ENTRIES > 1 else tl.full((), 0, tl.uint32)
    first = tl.full((), 0, tl.uint32)
    last = tl.full((), _AUGMENTATION, tl.uint32)
    c0, c1, c2, _ = _philox(key, first, number.to(tl.uint32), stream, last)
    places = tl.cast(2 * padding + 1, tl.uint32)
    down = tl.umulhi(c0, places).to(tl.int32) - padding
    right = tl.umulhi(c1, places).to(tl.int32) - padding

    area = height * width
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    row = pixel // width
    column = pixel - row * width
    if FLIP:
        column = tl.where((c2 >> 31) != 0, width - 1 - column, column)
    source = (_reflect(row + down, height) * width + _reflect(column + right, width)) * CHANNELS
    inside = pixel < area
    # Compared as a block: the interpreter of Triton 3.9 broadcasts a truth value to int32, which is no mask.
    numbers = tl.full((PIXELS,), number, tl.int64)
    known = (numbers >= 0) & (numbers < size)
    image = images + number * (tl.cast(area, tl.int64) * CHANNELS)
    plane = out + sample * (tl.cast(area, tl.int64) * CHANNELS)
    for channel in range(CHANNELS):
        value = tl.load(image + source + channel, inside & known).to(tl.float32)
        # value / 255, correctly rounded: 1 / 255 is 2**-8 + 2**-16 plus 2**-16 times itself; the first product is exact.
        unit = value * (257.0 / 65536) + value * (1.0 / (255.0 * 65536))
        tl.store(plane + pixel, tl.where(known, unit, float("nan")), inside)
        plane += area
