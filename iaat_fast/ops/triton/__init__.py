"""The Triton backend, for AMD GPUs and machines without nvcc: each file has kernels and the functions that launch them.

A kernel is compiled, in about a second, at the first call with given dtypes and a given choice of sizes and addresses
that are multiples of 16; the result is cached on disk. So a CUDA graph must be captured after a call with similar
arguments on that device, as PyTorch requires of any captured code. With TRITON_INTERPRET=1 the ops run on CPU tensors,
in NumPy, and check values like the other CPU backends.
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
