"""The stem: normalisation, 3x3 convolution of few channels and clamp; and its backward with a PGD step.

The speed of both is limited by one large tensor, the O feature maps, which is written or read once, in 16-byte
accesses; tensor cores keep the cost of the convolution small. The kernels support half-precision weights only.

Forward is an implicit matrix product [pixels, 9*C] x [9*C, O]. The 9*C inputs of a pixel are gathered from the images,
through the L1 cache, and normalised in registers.

Backward is a product [pixels, O] x [O, 9*C]: each vector of the gradient is read once and multiplied by all nine taps,
the weights of the 3x3 kernel, and each product is added to the pixel that its tap points to. (Nine shifted reads, an
implicit product over 9*O, would move each vector through shared memory nine times, which takes longer than reading it
from DRAM.) A program moves down the rows of its images: the products of a gradient row are added to accumulators for
the image row above, the same row and the row below. Within a row, products are gathered through shared memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from iaat_fast.ops import checks, reference
from iaat_fast.ops.layout import convolved, in_one_layout, written
from iaat_fast.ops.triton.common import (
    BITS,
    INTERPRETED,
    clamp,
    count,
    on,
    projected,
    rounded,
    signed,
    widened,
)

# Forward: pixels per tile, whose 27 inputs and 64 outputs per pixel fit into the registers of 4 warps; and its width.
_PIXELS = 128
_ROW = 32
# Backward: 64 pixels of a row at a time, the height of one instruction of Hopper's tensor cores; 4 rows per program.
# Half of the gradient is read twice, the second time from the L2 cache, but a CIFAR batch of 128 images gives 512
# programs for the 132 multiprocessors of an H100. With more rows, less is read twice, but multiprocessors are idle.
_LINE = 64
_ROWS = 4
_BLOCK = 64  # maximum number of outputs processed at a time
_WARPS = 4
_INT32_MAX = 2**31 - 1


@triton.jit
def stem_conv_relu_kernel(
    out,
    x,
    mean,
    std,
    weight,
    bias,
    height,
    width,
    x_image,
    x_channel,
    x_row,
    x_column,
    weight_output,
    weight_channel,
    weight_row,
    weight_column,
    floor,
    ceiling,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile of TALL x WIDE pixels. INPUTS: 9*C, padded to a power of two; BLOCK: outputs at a time.

    Arguments with an underscore are strides: images and weight may have any memory format.
    """
    half = weight.dtype.element_ty
    across, down = tl.cdiv(width, WIDE), tl.cdiv(height, TALL)
    program = tl.program_id(0)
    image = (program // (across * down)).to(tl.int64)
    pixel = tl.arange(0, TALL * WIDE)
    h = program // across % down * TALL + pixel // WIDE
    w = program % across * WIDE + pixel % WIDE

    tap = tl.arange(0, INPUTS)
    channel, dh, dw = tap // 9, tap % 9 // 3 - 1, tap % 3 - 1
    real = tap < 9 * CHANNELS
    # [inputs, pixels]: the lanes of a warp are neighbours in a row of the image.
    at_h, at_w = dh[:, None] + h[None, :], dw[:, None] + w[None, :]
    inside = (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width) & real[:, None]
    place = (channel * x_channel + dh * x_row + dw * x_column)[:, None]
    place += (h * x_row + w * x_column)[None, :]
    value = tl.load(x + image * x_image + place, inside, other=0.0)
    centre = tl.load(mean + channel, real, other=0.0)[:, None]
    spread = tl.load(std + channel, real, other=1.0)[:, None]
    # The padding is 0 after the normalisation.
    inputs = tl.where(inside, tl.div_rn(value - centre, spread), 0.0)
    inputs = tl.trans(rounded(inputs, half))

    stored = (h < height) & (w < width)
    line = out + (image * height * width + h * width + w)[:, None] * OUTPUTS
    kernel = channel * weight_channel + (dh + 1) * weight_row + (dw + 1) * weight_column
    for chunk in tl.range(tl.cdiv(OUTPUTS, BLOCK), num_stages=1):
        output = chunk * BLOCK + tl.arange(0, BLOCK)
        known = output < OUTPUTS
        # [outputs, inputs]: the inputs of an output are contiguous in memory.
        taps = tl.load(
            weight + output[:, None] * weight_output + kernel[None, :],
            known[:, None] & real[None, :],
            other=0.0,
        )
        sums = _dot(inputs, tl.trans(taps), tl.zeros((TALL * WIDE, BLOCK), tl.float32))
        sums += widened(tl.load(bias + output, known, other=0.0), tl.float32)[None, :]
        sums = clamp(sums, floor, ceiling)
        tl.store(line + output[None, :], rounded(sums, half), stored[:, None] & known[None, :])


@triton.jit
def stem_conv_step_kernel(
    x_adv,
    grad,
    weight,
    x,
    eps,
    alpha,
    stats,
    rows,
    samples,
    height,
    width,
    x_image,
    x_channel,
    x_row,
    x_column,
    weight_output,
    weight_channel,
    weight_row,
    weight_column,
    lo,
    hi,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TARGETED: tl.constexpr,
    IMAGES: tl.constexpr,
    WIDE: tl.constexpr,
    HALO: tl.constexpr,
    TALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per TALL rows, WIDE columns wide, of IMAGES images. x_adv has `rows` images, x has `samples`.

    HALO: 0 if WIDE columns contain a whole row; else 1, and the outer columns are only read for their neighbours.
    BLOCK: outputs at a time. Arguments with an underscore are strides, those of x holding for x_adv too.
    """
    across, down = tl.cdiv(width, WIDE - 2 * HALO), tl.cdiv(height, TALL)
    program = tl.program_id(0)
    line = tl.arange(0, IMAGES * WIDE)
    row = (program // (across * down) * IMAGES + line // WIDE).to(tl.int64)
    first = program // across % down * TALL
    w = program % across * (WIDE - 2 * HALO) - HALO + line % WIDE
    known = (row < rows) & (w >= 0) & (w < width)
    mine = known & (line % WIDE >= HALO) & (line % WIDE < WIDE - HALO)
    # How many rows of the image are read, and of this program written; negative row numbers are large as unsigned.
    reads = tl.where(known, height, 0).to(tl.uint32)
    steps = tl.where(mine, height - first, 0).to(tl.uint32)
    grad_line = grad + ((row * height * width + w) * OUTPUTS)[:, None]

    channel = tl.arange(0, 4)[None, :]
    image_place = channel * x_channel + (w * x_column)[:, None]
    moved_line = x_adv + (row * x_image)[:, None] + image_place
    centre_line = x + (row % samples * x_image)[:, None] + image_place
    radius = tl.load(eps + row, row < rows, other=0.0)[:, None]
    step = tl.load(alpha + row, row < rows, other=0.0)[:, None]
    if TARGETED:
        step = -step
    low, high = tl.full((1, 1), lo, tl.float32), tl.full((1, 1), hi, tl.float32)

    # Products are [pixels, 4 channels x 4 columns of the kernel]; the fourth column and missing channels are 0.
    part = tl.arange(0, 16)
    neighbour = (
        1 - part % 4
    )  # position of the product's pixel relative to the one that it is added to
    source = line[:, None] + neighbour[None, :]
    source_w = w[:, None] + neighbour[None, :]
    reached = (source_w >= 0) & (source_w < width) & mine[:, None] & (part % 4 < 3)[None, :]
    source = tl.where(reached, source, line[:, None])

    taps = weight + (part // 4) * weight_channel + (part % 4) * weight_column
    present = (part % 4 < 3) & (part // 4 < CHANNELS)
    if BLOCK >= OUTPUTS:  # the usual stem: the weight is loaded once
        top, middle, bottom = _taps(taps, present, 0, weight_output, weight_row, OUTPUTS, BLOCK)
    zeros = tl.zeros((IMAGES * WIDE, 4), tl.int32)
    nans = tl.zeros((IMAGES * WIDE, 4), tl.int32)
    above = tl.zeros((IMAGES * WIDE, 16), tl.float32)
    level = tl.zeros((IMAGES * WIDE, 16), tl.float32)
    # Row h of the gradient completes the sums of row h - 1, so the first two of a program complete none of its own.
    for turn in tl.range(TALL + 2, num_stages=3):
        h = first - 1 + turn
        stepped = (h - 1 - first).to(tl.uint32) < steps
        whole = stepped[:, None] & (channel < CHANNELS)
        # Loaded before the products, so that they arrive meanwhile.
        moved = tl.load(moved_line + (h - 1) * x_row, whole, other=0.0)
        centre = tl.load(centre_line + (h - 1) * x_row, whole, other=0.0)

        below = tl.zeros((IMAGES * WIDE, 16), tl.float32)
        there = h.to(tl.uint32) < reads
        if BLOCK >= OUTPUTS:
            slope = _gradient(grad_line + h * width * OUTPUTS, there, 0, OUTPUTS, BLOCK)
            above = _dot(slope, top, above)
            level = _dot(slope, middle, level)
            below = _dot(slope, bottom, below)
        else:
            for chunk in tl.range(tl.cdiv(OUTPUTS, BLOCK), num_stages=2):
                slope = _gradient(
                    grad_line + h * width * OUTPUTS, there, chunk * BLOCK, OUTPUTS, BLOCK
                )
                upper, same, lower = _taps(
                    taps, present, chunk * BLOCK, weight_output, weight_row, OUTPUTS, BLOCK
                )
                above = _dot(slope, upper, above)
                level = _dot(slope, same, level)
                below = _dot(slope, lower, below)

        gathered = tl.where(reached, tl.gather(above, source, 0), 0.0)
        total = tl.sum(tl.reshape(gathered, (IMAGES * WIDE, 4, 4)), 2)
        above, level = level, below
        moved = projected(moved + signed(step, total), centre, radius, low, high)
        tl.store(moved_line + (h - 1) * x_row, moved, whole)
        if stats is not None:
            zeros += (whole & (total == 0)).to(tl.int32)
            nans += (whole & (total != total)).to(tl.int32)
    if stats is not None:
        count(stats, zeros)
        count(stats + 1, nans)


@triton.jit
def _gradient(line, there, first, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of BLOCK outputs for a row of pixels; 0 outside the image."""
    output = first + tl.arange(0, BLOCK)
    mask = there[:, None] & (output < OUTPUTS)[None, :]
    return tl.load(line + output[None, :], mask, other=0.0)


@triton.jit
def _taps(
    taps,
    present,
    first,
    weight_output,
    weight_row,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weight of BLOCK outputs, [outputs, channels x columns], for each of the kernel's three rows."""
    output = first + tl.arange(0, BLOCK)
    place = taps[None, :] + output[:, None] * weight_output
    mask = present[None, :] & (output < OUTPUTS)[:, None]
    return (
        tl.load(place, mask, other=0.0),
        tl.load(place + weight_row, mask, other=0.0),
        tl.load(place + 2 * weight_row, mask, other=0.0),
    )


@triton.jit
def _dot(a, b, sums):
    """sums + a @ b in float32, for half-precision a and b."""
    if INTERPRETED:  # the interpreter would multiply the bits of bfloat16
        result = tl.dot(widened(a, tl.float32), widened(b, tl.float32), sums)
    else:
        result = tl.dot(a, b, sums)
    return result


def stem_conv_relu(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    if not _served(x, weight):
        return reference.stem_conv_relu(x, mean, std, weight, bias, floor, ceiling)
    out = convolved(x, weight)
    samples, channels, height, width = x.shape
    if samples:
        wide = min(triton.next_power_of_2(width), _ROW)
        tall = _PIXELS // wide
        with on(x.device):
            stem_conv_relu_kernel[
                (samples * triton.cdiv(height, tall) * triton.cdiv(width, wide),)
            ](
                out,
                x,
                mean.contiguous(),
                std.contiguous(),
                weight,
                bias.contiguous(),
                height,
                width,
                *x.stride(),
                *weight.stride(),
                floor,
                ceiling,
                CHANNELS=channels,
                OUTPUTS=weight.shape[0],
                TALL=tall,
                WIDE=wide,
                INPUTS=triton.next_power_of_2(9 * channels),
                BLOCK=_block(weight.shape[0]),
                num_warps=_WARPS,
                **BITS,
            )
    return out


def stem_conv_step_(
    x_adv: Tensor,
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    lo: float,
    hi: float,
    targeted: bool,
    stats: Tensor | None,
) -> None:
    if not _served(x, weight):
        reference.stem_conv_step_(x_adv, grad, weight, x, eps, alpha, lo, hi, targeted, stats)
        return
    if eps.is_cpu:
        checks.step_values(alpha, eps)
    target, x = in_one_layout(x_adv, x)
    rows, channels, height, width = target.shape
    counts = None if stats is None else stats.contiguous()
    if rows:
        wide = min(triton.next_power_of_2(width), _LINE)
        halo = int(width > wide)
        images = _LINE // wide
        across = triton.cdiv(width, wide - 2 * halo)
        with on(x.device):
            stem_conv_step_kernel[
                (triton.cdiv(rows, images) * triton.cdiv(height, _ROWS) * across,)
            ](
                target,
                grad.contiguous(memory_format=torch.channels_last),
                weight,
                x,
                eps.contiguous(),
                alpha.contiguous(),
                counts,
                rows,
                x.shape[0],
                height,
                width,
                *target.stride(),
                *weight.stride(),
                lo,
                hi,
                CHANNELS=channels,
                OUTPUTS=weight.shape[0],
                TARGETED=targeted,
                IMAGES=images,
                WIDE=wide,
                HALO=halo,
                TALL=_ROWS,
                BLOCK=_block(weight.shape[0]),
                num_warps=_WARPS,
                **BITS,
            )
    written(x_adv, target)
    if stats is not None and counts is not None:
        written(stats, counts)


def _served(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels support these: half-precision weights, and positions within an image below 2**30."""
    reach = sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )
    largest = max(reach, weight.shape[0] * x.shape[2] * x.shape[3])
    return weight.dtype is not torch.float32 and largest <= _INT32_MAX // 2


def _block(outputs: int) -> int:
    """Outputs at a time: all of a usual stem; for a wider one, a power of two that divides them, but at least 16."""
    if outputs <= _BLOCK:
        return max(16, triton.next_power_of_2(outputs))
    return max(16, min(_BLOCK, outputs & -outputs))
