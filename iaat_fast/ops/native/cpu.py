"""The native backend on the CPU: the kernels of `iaat_fast._C`, and torch's convolutions for the stem.

Importing this module raises ImportError if the extension is not built. torch is imported before the extension, so that
both use torch's OpenMP runtime and thread pool.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import _C
from iaat_fast.ops import checks, primitives, reference
from iaat_fast.ops.layout import convolved
from iaat_fast.ops.native import signatures
from iaat_fast.ops.native.compiled import CompiledOps

_kernels = signatures.callers(_C, signatures.CPU, queued=False)
_ops = CompiledOps(_kernels, primitives.stream_of)

project_linf = _ops.project_linf
pgd_step_linf_ = _ops.pgd_step_linf_
random_start_linf = _ops.random_start_linf
select_epsilon_ = _ops.select_epsilon_
random_crop_flip = _ops.random_crop_flip
relu_backward_ = _ops.relu_backward_
scale_shift_relu = _ops.scale_shift_relu
scale_shift_relu_backward_ = _ops.scale_shift_relu_backward_


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    logits, y = logits.contiguous(), y.contiguous()
    dtype, (rows, classes), samples = logits.dtype, logits.shape, y.shape[0]
    wide = logits if dtype == torch.float64 else logits.float()
    minus_onehot = torch.empty_like(wide)
    if rows and not _kernels.minus_onehot(dtype, minus_onehot, y, rows, samples, classes):
        checks.class_values(y, classes)
    # torch's own kernel, so that softmax - onehot has the bits of autograd.
    plain = primitives.plus_softmax(minus_onehot, wide)
    if rows and not _kernels.saturation_proof(dtype, plain, logits, y, rows, samples, classes):
        checks.logit_values(logits)
    return plain if wide is logits else plain.to(dtype)


def stem_conv_relu(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    """By torch's convolution, which is fast on a CPU."""
    if not _sums_in_float32(weight.dtype):
        return reference.stem_conv_relu(x, mean, std, weight, bias, floor, ceiling)
    images = primitives.normalised(x, mean, std)
    images = images.to(weight.dtype, memory_format=torch.channels_last)
    sums = F.conv2d(images, weight, bias, padding=1)
    # Clamped after rounding, with the same result as before it, because both are monotone.
    if -math.inf < floor or ceiling < math.inf:
        sums.clamp_(floor, ceiling)
    out = convolved(x, weight)
    return sums if sums.stride() == out.stride() else out.copy_(sums)


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
    # Only the sign matters. Rounding keeps it, unless a float16 underflows; bfloat16 has the range of float32.
    narrow = weight.dtype is torch.bfloat16 and _sums_in_float32(weight.dtype)
    slope = primitives.stem_gradient(grad, weight, weight.dtype if narrow else torch.float32)
    pgd_step_linf_(x_adv, slope.float(), x, eps, alpha, lo, hi, targeted, stats)


def _sums_in_float32(dtype: torch.dtype) -> bool:
    """Whether torch uses oneDNN for convolutions in this dtype: it sums in float32, with the bias, and rounds once."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
