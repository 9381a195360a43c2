"""The compiled ops: tensors in, addresses and sizes to `iaat_fast._C`.

Importing this module raises ImportError where the extension is not built. torch is imported before the extension so
that both use the one OpenMP runtime, and thread pool, that torch brings. A kernel that meets an invalid value returns
False before it has written anything; `checks` then finds and names it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import _C
from iaat_fast.ops import checks, primitives, reference
from iaat_fast.ops.layout import channels_of, convolved, in_one_layout, like, memory_format
from iaat_fast.ops.storage import CODES, written


def project_linf(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    x_adv, x = in_one_layout(x_adv, x)
    out = torch.empty_like(x_adv, memory_format=memory_format(x_adv))
    rows, samples = x_adv.shape[0], x.shape[0]
    # Bound to a name: a temporary would be freed before the kernel reads it.
    eps = eps.contiguous()
    if rows:
        valid = _C.project_linf(
            CODES[x.dtype],
            out.data_ptr(),
            x_adv.data_ptr(),
            x.data_ptr(),
            eps.data_ptr(),
            rows,
            samples,
            x.numel() // samples,
            lo,
            hi,
        )
        if not valid:
            checks.radii_values(eps)
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
    target, grad, x = in_one_layout(x_adv, grad, x)
    rows, samples = x_adv.shape[0], x.shape[0]
    if not rows:
        return
    eps, alpha = eps.contiguous(), alpha.contiguous()
    counts = None if stats is None else stats.contiguous()
    valid = _C.pgd_step_linf(
        CODES[x.dtype],
        target.data_ptr(),
        grad.data_ptr(),
        x.data_ptr(),
        eps.data_ptr(),
        alpha.data_ptr(),
        0 if counts is None else counts.data_ptr(),
        rows,
        samples,
        x.numel() // samples,
        lo,
        hi,
        targeted,
    )
    if not valid:
        checks.step_values(alpha, eps)
    written(x_adv, target)
    if stats is not None and counts is not None:
        written(stats, counts)


def random_start_linf(
    x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
) -> Tensor:
    # The noise is drawn in logical element order, so the layout is put back afterwards.
    layout, x = memory_format(x), x.contiguous()
    rows, samples = eps.shape[0], x.shape[0]
    out = torch.empty((rows, *x.shape[1:]), dtype=x.dtype)
    eps, index, stream = (
        eps.contiguous(),
        index.contiguous(),
        primitives.stream_of(seed).contiguous(),
    )
    if rows:
        valid = _C.random_start_linf(
            CODES[x.dtype],
            out.data_ptr(),
            x.data_ptr(),
            eps.data_ptr(),
            stream.data_ptr(),
            index.data_ptr(),
            rows,
            samples,
            x.numel() // samples,
            lo,
            hi,
        )
        if not valid:
            checks.radii_values(eps)
    return out.contiguous(memory_format=layout)


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    logits, y = logits.contiguous(), y.contiguous()
    code, rows, samples, classes = CODES[logits.dtype], logits.shape[0], y.shape[0], logits.shape[1]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    minus_onehot = torch.empty_like(wide)
    if rows and not _C.minus_onehot(
        code, minus_onehot.data_ptr(), y.data_ptr(), rows, samples, classes
    ):
        checks.class_values(y, classes)
    # softmax - onehot comes from torch's own kernel: an attack must see the bits that autograd would have seen.
    cotangent = primitives.plus_softmax(minus_onehot, wide)
    if rows and not _C.saturation_proof(
        code, cotangent.data_ptr(), logits.data_ptr(), y.data_ptr(), rows, samples, classes
    ):
        checks.logit_values(logits)
    return cotangent if wide is logits else cotangent.to(logits.dtype)


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
    values, index, logits, y = (
        memory.contiguous(),
        index.contiguous(),
        logits.contiguous(),
        y.contiguous(),
    )
    mask = None if misclassified is None else misclassified.contiguous()
    eps, choice = memory.new_empty(index.shape), torch.empty_like(index)
    if index.shape[0]:
        valid = _C.select_epsilon(
            CODES[logits.dtype],
            values.data_ptr(),
            memory.shape[0],
            index.data_ptr(),
            logits.data_ptr(),
            y.data_ptr(),
            eps.data_ptr(),
            choice.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            index.shape[0],
            logits.shape[1],
            gamma,
            beta,
            eps_min,
            eps_max,
            clamp_candidate,
        )
        if not valid:
            checks.index_values(index, memory.shape[0])
            checks.class_values(y, logits.shape[1])
            checks.logit_values(logits)
        written(memory, values)
    return eps, choice


def random_crop_flip(
    images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool
) -> Tensor:
    images, index, stream = (
        images.contiguous(),
        index.contiguous(),
        primitives.stream_of(seed, 2).contiguous(),
    )
    size, height, width, channels = images.shape
    out = torch.empty((index.shape[0], channels, height, width), dtype=torch.float32)
    valid = _C.random_crop_flip(
        out.data_ptr(),
        images.data_ptr(),
        index.data_ptr(),
        stream.data_ptr(),
        index.shape[0],
        size,
        height,
        width,
        channels,
        padding,
        flip,
    )
    if not valid:
        checks.index_values(index, size)
    return out


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> None:
    target, out = in_one_layout(grad, out)
    other = like(target, other)
    if grad.numel():
        _C.relu_backward(
            CODES[grad.dtype],
            target.data_ptr(),
            out.data_ptr(),
            0 if other is None else other.data_ptr(),
            grad.numel(),
            floor,
            ceiling,
        )
        written(grad, target)


def scale_shift_relu(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    (target,) = in_one_layout(x)
    residual, scale, shift = like(target, residual), scale.contiguous(), shift.contiguous()
    out = torch.empty_like(x, memory_format=memory_format(x))
    if x.numel():
        _C.scale_shift_relu(
            CODES[x.dtype],
            out.data_ptr(),
            target.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            scale.data_ptr(),
            shift.data_ptr(),
            x.numel(),
            *channels_of(target),
            floor,
            ceiling,
        )
        if residual is not None:
            written(x, target)
    return out


def scale_shift_relu_backward_(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    floor: float,
    ceiling: float,
) -> None:
    target, out = in_one_layout(grad, out)
    residual, scale = like(target, residual), scale.contiguous()
    if grad.numel():
        _C.scale_shift_relu_backward(
            CODES[grad.dtype],
            target.data_ptr(),
            out.data_ptr(),
            scale.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            grad.numel(),
            *channels_of(target),
            floor,
            ceiling,
        )
        written(grad, target)


def stem_conv_relu(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    """torch's convolution is what a CPU wants: nothing here is compiled."""
    if not _sums_in_float32(weight.dtype):
        return reference.stem_conv_relu(x, mean, std, weight, bias, floor, ceiling)
    images = primitives.normalised(x, mean, std)
    images = images.to(weight.dtype, memory_format=torch.channels_last)
    sums = F.conv2d(images, weight, bias, padding=1)
    # Clamping what is rounded is rounding what is clamped: both are monotone.
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
    # Rounding keeps a sign unless it underflows: not in bfloat16, which has float32's range, but in float16.
    narrow = weight.dtype is torch.bfloat16 and _sums_in_float32(weight.dtype)
    slope = primitives.stem_gradient(grad, weight, weight.dtype if narrow else torch.float32)
    pgd_step_linf_(x_adv, slope.float(), x, eps, alpha, lo, hi, targeted, stats)


def _sums_in_float32(dtype: torch.dtype) -> bool:
    """Whether torch convolves in oneDNN, whose sums are float32, bias included, and rounded once."""
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True
