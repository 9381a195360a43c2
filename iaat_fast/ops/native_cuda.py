"""The compiled ops on CUDA: tensors in, addresses and the current stream to `iaat_fast._C.cuda`.

Importing this module raises ImportError where the extension is not built, or built without its CUDA kernels. Every op
is one launch on the tensors' device, on torch's current stream there. Nothing waits for the device: values inside
tensors are not checked, and a class or index out of range comes out as NaN.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from iaat_fast import _C
from iaat_fast.ops import primitives, reference
from iaat_fast.ops.layout import channels_of, in_one_layout, like, memory_format
from iaat_fast.ops.storage import CODES, written

try:
    from iaat_fast.ops.triton_stem import stem_conv_relu as stem_conv_relu
    from iaat_fast.ops.triton_stem import stem_conv_step_ as stem_conv_step_
except ImportError as error:
    logging.getLogger("iaat_fast").warning(
        "stem_conv_relu and stem_conv_step_ on CUDA: the slower reference: %s", error
    )
    stem_conv_relu = reference.stem_conv_relu
    stem_conv_step_ = reference.stem_conv_step_

if not hasattr(_C, "cuda"):
    raise ImportError(
        "iaat_fast._C is built without its CUDA kernels; build it with IAAT_CUDA=1 where nvcc is installed"
    )


def _queue(device: torch.device) -> tuple[int, int]:
    """The number of the device and its current stream, as the launchers take them."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def project_linf(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    x_adv, x = in_one_layout(x_adv, x)
    out = torch.empty_like(x_adv, memory_format=memory_format(x_adv))
    rows, samples = x_adv.shape[0], x.shape[0]
    # Bound to a name: a temporary's memory could be handed out again before the kernel is queued.
    eps = eps.contiguous()
    if rows:
        _C.cuda.project_linf(
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
            *_queue(x.device),
        )
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
    _C.cuda.pgd_step_linf(
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
        *_queue(x.device),
    )
    written(x_adv, target)
    if stats is not None and counts is not None:
        written(stats, counts)


def random_start_linf(
    x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
) -> Tensor:
    # The noise is drawn in logical element order, so the layout is put back afterwards.
    layout, x = memory_format(x), x.contiguous()
    rows, samples = eps.shape[0], x.shape[0]
    out = x.new_empty((rows, *x.shape[1:]))
    eps, index, seed = eps.contiguous(), index.contiguous(), seed.contiguous()
    if rows:
        _C.cuda.random_start_linf(
            CODES[x.dtype],
            out.data_ptr(),
            x.data_ptr(),
            eps.data_ptr(),
            seed.data_ptr(),
            seed.numel(),
            index.data_ptr(),
            rows,
            samples,
            x.numel() // samples,
            lo,
            hi,
            *_queue(x.device),
        )
    return out.contiguous(memory_format=layout)


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    logits, y = logits.contiguous(), y.contiguous()
    rows, classes = logits.shape
    if not rows:
        return torch.empty_like(logits)
    sizes = (rows, y.shape[0], classes, *_queue(logits.device))
    code = CODES[logits.dtype]
    if logits.dtype != torch.float64 and classes <= _C.cuda.PERSISTENT_CLASSES:
        out = torch.empty_like(logits)
        _C.cuda.ce_cotangent(code, out.data_ptr(), logits.data_ptr(), y.data_ptr(), *sizes)
        return out
    # torch's scatter would take the process down over a class out of range; the kernel turns its row into NaN.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    plain = primitives.softmax_minus_onehot(wide, y.clamp(0, classes - 1))
    _C.cuda.saturation_proof(code, plain.data_ptr(), logits.data_ptr(), y.data_ptr(), *sizes)
    return plain.to(logits.dtype)


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
        _C.cuda.select_epsilon(
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
            *_queue(logits.device),
        )
        written(memory, values)
    return eps, choice


def random_crop_flip(
    images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool
) -> Tensor:
    images, index, seed = images.contiguous(), index.contiguous(), seed.contiguous()
    size, height, width, channels = images.shape
    out = images.new_empty((index.shape[0], channels, height, width), dtype=torch.float32)
    _C.cuda.random_crop_flip(
        out.data_ptr(),
        images.data_ptr(),
        index.data_ptr(),
        seed.data_ptr(),
        seed.numel(),
        index.shape[0],
        size,
        height,
        width,
        channels,
        padding,
        flip,
        *_queue(images.device),
    )
    return out


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> None:
    target, out = in_one_layout(grad, out)
    other = like(target, other)
    if grad.numel():
        _C.cuda.relu_backward(
            CODES[grad.dtype],
            target.data_ptr(),
            out.data_ptr(),
            0 if other is None else other.data_ptr(),
            grad.numel(),
            floor,
            ceiling,
            *_queue(grad.device),
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
        _C.cuda.scale_shift_relu(
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
            *_queue(x.device),
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
        _C.cuda.scale_shift_relu_backward(
            CODES[grad.dtype],
            target.data_ptr(),
            out.data_ptr(),
            scale.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            grad.numel(),
            *channels_of(target),
            floor,
            ceiling,
            *_queue(grad.device),
        )
        written(grad, target)
