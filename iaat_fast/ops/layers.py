"""Elementwise ops of a network under attack and of its backward pass; each reads and writes every tensor once.

Tensors are float32, float64, float16 or bfloat16, contiguous or channels_last. All tensors of a call have the same
dtype, device and shape; the result has the first one's memory format. Arithmetic is in float32 (float64 for float64)
and rounded once. An activation is a clamp to [floor, ceiling]: ReLU is (0, inf), ReLU6 (0, 6), none (-inf, inf). As in
autograd, its gradient is 0 where its output is <= floor or >= ceiling; NaN and infinite bounds do not block it. These
ops cannot be differentiated, and none waits for the device.
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
    """The backward of an activation, in place: grad (+ other) where the output lies between the bounds, else 0.

    Args:
        grad: gradient of the loss with respect to the activation's output, any shape, overwritten.
        out: the activation's output.
        other: a second gradient of that output, from another branch, added to grad.
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
        residual: tensor added to x, of the same shape and dtype.
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
    """The backward of scale_shift_relu, in place: grad * scale where the activation passed it, else 0 (+ residual).

    Args:
        grad: gradient of the loss with respect to the result, [N, C, ...], overwritten.
        out: that result.
        scale: [C], float32 (float64 for float64 grad).
        residual: another gradient of x, added without mask and scale.
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
