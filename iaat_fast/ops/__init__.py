"""The library's ops over images [N, ...], with checks and documentation; `reference.py` defines each in plain torch.

`functional.py` has the ops of attacks and training; `layers.py` those for activations and normalisations of a network
under attack; `stem.py` those for its first layers.
"""

from iaat_fast.ops.functional import (
    backend,
    ce_cotangent,
    pgd_step_linf_,
    project_linf,
    random_crop_flip,
    random_start_linf,
    select_epsilon_,
)
from iaat_fast.ops.layers import relu_backward_, scale_shift_relu, scale_shift_relu_backward_
from iaat_fast.ops.stem import stem_conv_relu, stem_conv_step_

__all__ = [
    "backend",
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
