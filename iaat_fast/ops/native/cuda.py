"""The native backend on CUDA: the kernels of `iaat_fast._C.cuda`, and the Triton kernels for the stem.

Importing this module raises ImportError if the extension is not built, or built without its CUDA kernels. Kernels are
launched on the tensors' device, on torch's current stream there. Nothing waits for the device, so values inside tensors
are not checked; a class or index out of range gives NaN.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from iaat_fast import _C
from iaat_fast.ops import primitives, reference
from iaat_fast.ops.native import signatures
from iaat_fast.ops.native.compiled import CompiledOps

try:
    from iaat_fast.ops.triton.stem import stem_conv_relu as stem_conv_relu
    from iaat_fast.ops.triton.stem import stem_conv_step_ as stem_conv_step_
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


_kernels = signatures.callers(_C.cuda, signatures.CUDA, queued=True)
# Seeds are passed unchanged: the kernels take missing entries as 0.
_ops = CompiledOps(_kernels, lambda seed, entries: seed)

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
    if not rows:
        return torch.empty_like(logits)
    if dtype != torch.float64 and classes <= _C.cuda.PERSISTENT_CLASSES:
        out = torch.empty_like(logits)
        _kernels.ce_cotangent(dtype, out, logits, y, rows, samples, classes)
        return out
    # Clamped, as a class out of range would kill the process in torch's scatter. The kernel makes such rows NaN.
    wide = primitives.widened(logits)
    plain = primitives.softmax_minus_onehot(wide, y.clamp(0, classes - 1))
    _kernels.saturation_proof(dtype, plain, logits, y, rows, samples, classes)
    return plain.to(dtype)
