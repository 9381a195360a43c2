"""The ops in Triton, for GPUs without nvcc and for AMD: tensors in, launches of `triton_kernels` out.

A kernel is compiled at its first call with a combination of dtypes, and of sizes and addresses that are multiples of 16
(a second or so, then cached on disk). So a CUDA graph must be captured after a call with the same kinds of arguments on
that device, as PyTorch asks of any captured code. With TRITON_INTERPRET=1 the ops run on CPU tensors; values are then
checked as the other CPU backends check them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from iaat_fast.ops import checks, primitives
from iaat_fast.ops.layout import in_one_layout, memory_format, written
from iaat_fast.ops.triton_kernels import draws, linf, logit_rows
from iaat_fast.ops.triton_launch import BITS, VECTORS, WARPS, on, wide
from iaat_fast.ops.triton_layers import (
    relu_backward_,
    scale_shift_relu,
    scale_shift_relu_backward_,
)
from iaat_fast.ops.triton_stem import stem_conv_relu, stem_conv_step_

__all__ = [
    "ce_cotangent",
    "pgd_step_linf_",
    "project_linf",
    "random_crop_flip",
    "random_start_linf",
    "relu_backward_",
    "scale_shift_relu",
    "scale_shift_relu_backward_",
    "select_epsilon_",
    "stem_conv_relu",
    "stem_conv_step_",
]

_WIDTH = 1024  # classes at a time
_PIXELS = 256


def project_linf(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    if eps.is_cpu:
        checks.radii_values(eps)
    x_adv, x = in_one_layout(x_adv, x)
    out = torch.empty_like(x_adv, memory_format=memory_format(x_adv))
    _linf(out, x_adv, None, x, eps.contiguous(), None, None, lo, hi, False)
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
    _linf(target, target, grad, x, eps.contiguous(), alpha.contiguous(), counts, lo, hi, targeted)
    written(x_adv, target)
    if stats is not None and counts is not None:
        written(stats, counts)


def random_start_linf(
    x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float
) -> Tensor:
    if eps.is_cpu:
        checks.radii_values(eps)
    # The noise is drawn in logical element order, so the layout is put back afterwards.
    layout, x = memory_format(x), x.contiguous()
    rows, samples = eps.shape[0], x.shape[0]
    out = x.new_empty((rows, *x.shape[1:]))
    if out.numel():
        row_elems = x.numel() // samples
        row_blocks = (row_elems + 3) // 4
        blocks = samples * row_blocks
        # In float32 two blocks a thread. In the half types one: accesses of 8 bytes are enough where the rounds of
        # Philox take the time, and those of 16 would send the noise through shared memory.
        height = 2 * 32 * WARPS if x.dtype == torch.float32 else 32 * WARPS
        with on(x.device):
            draws.random_start[(triton.cdiv(blocks, height),)](
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


def ce_cotangent(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    if logits.is_cpu:
        checks.class_values(y, logits.shape[1])
        checks.logit_values(logits)
    logits, y = logits.contiguous(), y.contiguous()
    rows, classes = logits.shape
    # softmax - onehot comes from torch's own kernel: an attack must see the bits that autograd would have seen. A class
    # out of range would end the process there; the kernel below fills its row with NaN.
    plain = primitives.softmax_minus_onehot(
        logits if logits.dtype == torch.float64 else logits.float(), y.clamp(0, classes - 1)
    )
    out = torch.empty_like(logits)
    if rows:
        width = min(triton.next_power_of_2(classes), _WIDTH)
        with on(logits.device):
            logit_rows.saturation_proof[(rows,)](
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
            logit_rows.select_epsilon[(triton.cdiv(samples, at_once),)](
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
            draws.crop_flip[(index.shape[0], triton.cdiv(height * width, _PIXELS))](
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


def _linf(
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
    """Launch the step, or the projection where there is no gradient, on tensors of one layout."""
    elements, samples = x.numel(), x.shape[0]
    if not elements:
        return
    row_elems, copies = elements // samples, x_adv.shape[0] // samples
    vec = 16 // x.element_size()
    if copies > 1 and elements % vec:  # the candidates' vectors would not be aligned
        vec = 1
    height = VECTORS * 16 // x.element_size() // vec
    if row_elems >= height * vec:
        rows = linf.ONE_BORDER_A_TILE
    else:
        rows = linf.ONE_BORDER_A_VECTOR if row_elems >= vec else linf.ANY_BORDERS
    vectors, tail = divmod(elements, vec)
    with on(x.device):
        linf.linf[(max(1, triton.cdiv(vectors, height)),)](
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
