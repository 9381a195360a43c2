"""The library's ops over images [N, ...]: typed, checked and documented; `reference.py` defines each in plain torch.

Those of attacks and training are in `functional.py`; the passes of a network under attack, its activations and
normalisations, in `layers.py`, and its first layers in `stem.py`.
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
