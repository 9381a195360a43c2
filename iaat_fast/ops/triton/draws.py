"""The ops that draw Philox numbers: the random start of an attack, and the augmentation's crops and flips."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from iaat_fast.ops import checks
from iaat_fast.ops.layout import memory_format
from iaat_fast.ops.triton.common import BITS, WARPS, clamp, on, rounded, wide, widened

_PIXELS = 256  # per program

_AUGMENTATION = tl.constexpr(0xFFFFFFFF)  # as in primitives.py


@triton.jit
def philox(key, c0, c1, c2, c3):
    """Philox4x32-10 (Salmon et al., SC 2011) with a 64-bit key and four counter words, uint32."""
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
def random_start_kernel(
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
    HEIGHT: tl.constexpr,
):
    """x plus noise. One program per HEIGHT Philox blocks of 4 elements; every row begins with a new block.

    WHOLE: row lengths are multiples of 4, so that a tile is contiguous. LONG: a row is at least as long as a tile.
    WIDE: positions need 64 bits.
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
        candidate_elems = tl.cast(blocks, tl.int64) * 4
        inside = first + place < candidate_elems
    else:
        element = block[:, None] * 4 + tl.arange(0, 4)[None, :]
        place = sample[:, None].to(tl.int64) * row_elems + element
        first = tl.full((), 0, tl.int64)
        inside = (start + number < blocks)[:, None] & (element < row_elems)
        candidate_elems = tl.cast(samples, tl.int64) * row_elems
    centre = widened(tl.load(x + first + place, inside), real)
    number_in_set = tl.load(index + sample).to(tl.uint32)

    low, high = tl.full((1,), lo, real), tl.full((1,), hi, real)
    for k in range(COPIES):
        radius = tl.load(eps + k * samples + sample)
        c0, c1, c2, c3 = philox(
            key, block.to(tl.uint32), number_in_set, candidate + tl.full((), k, tl.uint32), restart
        )
        even = tl.join(_noise(c0, radius), _noise(c2, radius))
        odd = tl.join(_noise(c1, radius), _noise(c3, radius))
        noise = tl.reshape(tl.join(even, odd), place.shape)
        started = rounded(clamp(centre + noise, low, high), out.dtype.element_ty)
        tl.store(out + first + k * candidate_elems + place, started, inside)


@triton.jit
def _noise(word, radius):
    """`primitives.uniform_symmetric` times the radius."""
    centred = 2 * (word >> 8).to(tl.int32) + (1 - (1 << 24))
    return centred.to(radius.dtype) * (1.0 / (1 << 24)) * radius


@triton.jit
def crop_flip_kernel(
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
    """One program per PIXELS pixels of one sample; a sample number out of range gives NaN."""
    sample = tl.program_id(0).to(tl.int64)
    number = tl.load(index + sample)
    key = tl.load(seed)
    stream = tl.load(seed + 1).to(tl.uint32) if ENTRIES > 1 else tl.full((), 0, tl.uint32)
    first = tl.full((), 0, tl.uint32)
    last = tl.full((), _AUGMENTATION, tl.uint32)
    c0, c1, c2, _ = philox(key, first, number.to(tl.uint32), stream, last)
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
    # As a block, because the interpreter of Triton 3.9 broadcasts a scalar bool to int32, which is not a mask.
    numbers = tl.full((PIXELS,), number, tl.int64)
    known = (numbers >= 0) & (numbers < size)
    image = images + number * (tl.cast(area, tl.int64) * CHANNELS)
    plane = out + sample * (tl.cast(area, tl.int64) * CHANNELS)
    for channel in range(CHANNELS):
        value = tl.load(image + source + channel, inside & known).to(tl.float32)
        # value / 255, correctly rounded, as in csrc/math/augment.h: 1 / 255 is 2**-8 + 2**-16 plus 2**-16 times itself.
        unit = value * (257.0 / 65536) + value * (1.0 / (255.0 * 65536))
        tl.store(plane + pixel, tl.where(known, unit, float("nan")), inside)
        plane += area


@triton.jit
def _reflect(position, size):
    """As `reference._reflect`."""
    last = size - 1
    return last - tl.abs(last - tl.abs(position))


def random_start_linf(
    x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
) -> Tensor:
    if eps.is_cpu:
        checks.radii_values(eps)
    # Noise is drawn for contiguous images, whose memory format is restored at the end.
    layout, x = memory_format(x), x.contiguous()
    rows, samples = eps.shape[0], x.shape[0]
    out = x.new_empty((rows, *x.shape[1:]))
    if out.numel():
        row_elems = x.numel() // samples
        row_blocks = (row_elems + 3) // 4
        blocks = samples * row_blocks
        # Two Philox blocks per thread in float32, one in half types: 8-byte accesses are enough, since computing Philox
        # takes the time, and with 16-byte ones the noise would pass through shared memory.
        height = 2 * 32 * WARPS if x.dtype == torch.float32 else 32 * WARPS
        with on(x.device):
            random_start_kernel[(triton.cdiv(blocks, height),)](
                out,
                x,
                eps.contiguous(),
                seed.reshape(-1).contiguous(),
                index.contiguous(),
                samples,
                row_elems,
                row_blocks,
                blocks,
                lo,
                hi,
                COPIES=rows // samples,
                ENTRIES=seed.numel(),
                WHOLE=row_elems % 4 == 0,
                WIDE=wide(4 * (blocks + height)),
                LONG=row_blocks >= height,
                HEIGHT=height,
                num_warps=WARPS,
                **BITS,
            )
    return out.contiguous(memory_format=layout)


def random_crop_flip(
    images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool
) -> Tensor:
    size, height, width, channels = images.shape
    if index.is_cpu:
        checks.index_values(index, size)
    out = torch.empty(
        (index.shape[0], channels, height, width), dtype=torch.float32, device=images.device
    )
    if out.numel():
        with on(images.device):
            crop_flip_kernel[(index.shape[0], triton.cdiv(height * width, _PIXELS))](
                out,
                images.contiguous(),
                index.contiguous(),
                seed.reshape(-1).contiguous(),
                size,
                height,
                width,
                padding,
                CHANNELS=channels,
                ENTRIES=seed.numel(),
                FLIP=flip,
                PIXELS=_PIXELS,
                num_warps=2,
                **BITS,
            )
    return out
