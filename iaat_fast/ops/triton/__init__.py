"""The ops in Triton, for GPUs without nvcc and for AMD: each file holds kernels, and the functions that launch them.

A kernel is compiled at its first call with a combination of dtypes, and of sizes and addresses that are multiples of 16
(a second or so, then cached on disk). So a CUDA graph must be captured after a call with the same kinds of arguments on
that device, as PyTorch asks of any captured code. With TRITON_INTERPRET=1 the ops run on CPU tensors, in NumPy; values
are then checked as the other CPU backends check them.
"""

from iaat_fast.ops.triton.draws import random_crop_flip, random_start_linf
from iaat_fast.ops.triton.layers import (
    relu_backward_,
    scale_shift_relu,
    scale_shift_relu_backward_,
)
from iaat_fast.ops.triton.linf import pgd_step_linf_, project_linf
from iaat_fast.ops.triton.logit_rows import ce_cotangent, select_epsilon_
from iaat_fast.ops.triton.stem import stem_conv_relu, stem_conv_step_

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
