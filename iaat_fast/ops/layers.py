"""The elementwise passes of a network under attack, and of the gradient of its images, each in one sweep of memory.

Tensors are float32, float64, float16 or bfloat16, contiguous or channels_last; all of a call share dtype, device and
shape, and the first one's layout decides. Arithmetic is in float32 (double for float64) and rounded once. An activation
is the clamp to [floor, ceiling]: ReLU is (0, inf), ReLU6 (0, 6), none (-inf, inf). Its gradient is blocked where its
output is <= floor or >= ceiling, and passes through NaN and at an infinite bound: the rule of autograd. Nothing here
has a gradient of its own, and nothing waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iaat_fast.ops import checks

_relu_backward_ = torch.ops.iaat_fast.relu_backward_.default
_scale_shift_relu = torch.ops.iaat_fast.scale_shift_relu.default
_scale_shift_relu_backward_ = torch.ops.iaat_fast.scale_shift_relu_backward_.default


def relu_backward_(
    grad: Tensor,
    out: Tensor,
    other: Tensor | None = None,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """The backward of an activation in place: grad (+ other) where the activation let it through, else 0.

    Args:
        grad: gradient of the loss with respect to the activation's output, any shape, overwritten.
        out: the activation's output.
        other: a second gradient of that output, from a branch that left there.
        floor, ceiling: the activation's bounds, rounded to the dtype of out.

    Returns:
        grad.

    Raises:
        TypeError: tensors that are not floating point, or of different dtypes.
        ValueError: shapes or devices that differ, a grad that requires grad, floor > ceiling.

    Source: torch's threshold_backward and hardtanh_backward.
    """
    checks.layer("grad", grad, channels=False)
    checks.same_layer("out", out, "grad", grad)
    if other is not None:
        checks.same_layer("other", other, "grad", grad)
        other = checks.constant(other)
    checks.in_place("grad", grad)
    checks.activation(floor, ceiling)
    _relu_backward_(grad, checks.constant(out), other, floor, ceiling)
    return grad


def scale_shift_relu(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """clamp(x * scale + shift, floor, ceiling), channel by channel: BatchNorm in eval mode and its activation.

    With a residual, x is first overwritten by x + residual, rounded to its dtype; the rest is computed from that.

    Args:
        x: [N, C, ...]; overwritten where a residual is given.
        scale: [C], float32 (float64 for float64 x): weight / sqrt(running_var + eps).
        shift: [C], of that dtype: bias - running_mean * scale.
        residual: what is added to x, of its shape.
        floor, ceiling: the activation's bounds.

    Returns:
        [N, C, ...] in the dtype and memory format of x, a constant to autograd. NaN stays NaN.

    Raises:
        TypeError: tensors that are not floating point, or of different dtypes.
        ValueError: shapes or devices that differ, an x that requires grad and is to be overwritten, floor > ceiling.

    Source: Ioffe and Szegedy 2015, Algorithm 2; the blocks of pre-activation networks: He et al. 2016, Figure 1b of
    "Identity Mappings in Deep Residual Networks".
    """
    checks.layer("x", x, channels=True)
    checks.per_channel("scale", scale, "x", x)
    checks.per_channel("shift", shift, "x", x)
    if residual is not None:
        checks.same_layer("residual", residual, "x", x)
        checks.in_place("x", x)
        residual = checks.constant(residual)
    checks.activation(floor, ceiling)
    return _scale_shift_relu(
        checks.constant(x),
        residual,
        checks.constant(scale),
        checks.constant(shift),
        floor,
        ceiling,
    )


def scale_shift_relu_backward_(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    residual: Tensor | None = None,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """The gradient of x from that of scale_shift_relu's result, in place: grad * scale where it passed (+ residual).

    Args:
        grad: gradient of the loss with respect to the result, [N, C, ...], overwritten.
        out: that result.
        scale: [C], float32 (float64 for float64 grad).
        residual: gradient that reaches x past the normalisation, added unmasked and unscaled.
        floor, ceiling: the activation's bounds, rounded to the dtype of out.

    Returns:
        grad.

    Raises:
        TypeError: tensors that are not floating point, or of different dtypes.
        ValueError: shapes or devices that differ, a grad that requires grad, floor > ceiling.

    Source: the chain rule of scale_shift_relu, with the mask of torch's threshold_backward and hardtanh_backward.
    """
    checks.layer("grad", grad, channels=True)
    checks.same_layer("out", out, "grad", grad)
    checks.per_channel("scale", scale, "grad", grad)
    if residual is not None:
        checks.same_layer("residual", residual, "grad", grad)
        residual = checks.constant(residual)
    checks.in_place("grad", grad)
    checks.activation(floor, ceiling)
    _scale_shift_relu_backward_(
        grad, checks.constant(out), checks.constant(scale), residual, floor, ceiling
    )
    return grad
