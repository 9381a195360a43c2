"""The stem's ops in Triton: tensors in, one launch each of `triton_kernels/stem.py` out.

They serve half-precision weights. A float32 network's stem is torch's own convolution, and so is one of images with
2**31 elements or more, counted in the network's channels.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from iaat_fast.ops import checks, reference
from iaat_fast.ops.layout import convolved, in_one_layout, written
from iaat_fast.ops.triton_kernels import stem
from iaat_fast.ops.triton_launch import BITS, on

# Forward, a tile of 128 pixels: its 27 inputs and 64 outputs fit into the registers of 4 warps.
_PIXELS = 128
_ROW = 32
# Backward, 64 pixels of a row at a time, the height of one instruction of Hopper's tensor cores, and 4 rows a program:
# half of the gradient is read twice, once from the L2 cache, but at CIFAR's batch of 128 images there are 512
# programs for the 132 processors of an H100. Longer walks read less twice and leave processors idle.
_LINE = 64
_ROWS = 4
_BLOCK = 64  # outputs at a time
_WARPS = 4
_INT32_MAX = 2**31 - 1


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
            stem.conv_relu[(samples * triton.cdiv(height, tall) * triton.cdiv(width, wide),)](
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
            stem.conv_step[(triton.cdiv(rows, images) * triton.cdiv(height, _ROWS) * across,)](
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
    """Whether the kernels count places within an image in 32 bits, and multiply what the tensor cores take."""
    reach = sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )
    largest = max(reach, weight.shape[0] * x.shape[2] * x.shape[3])
    return weight.dtype is not torch.float32 and largest <= _INT32_MAX // 2


def _block(outputs: int) -> int:
    """All outputs of a usual stem at once; of a wider one a divisor, or 16 where there is none worth a product."""
    if outputs <= _BLOCK:
        return max(16, triton.next_power_of_2(outputs))
    return max(16, min(_BLOCK, outputs & -outputs))
