"""The stem, a network's first layers: normalisation, 3x3 convolution and ReLU; and its backward with a PGD step.

The ops save memory traffic for half-precision networks: nothing between the float32 images and the first feature maps
is stored, nor is the gradient of the images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.ops import checks

CHANNELS = 4
"""Maximum number of input channels; with more, cuDNN is fast."""

MULTIPLE = 8
"""The number of output channels must be a multiple of this: 16 bytes in half precision, one memory access."""

WEIGHTS = (torch.float32, torch.float16, torch.bfloat16)

# `iaat_fast.ops` registers the ops before it imports this module.
_stem_conv_relu = torch.ops.iaat_fast.stem_conv_relu.default
_stem_conv_step_ = torch.ops.iaat_fast.stem_conv_step_.default


def stem_conv_relu(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """Normalise the images, convolve them (3x3, stride 1, padding 1), add the bias and clamp to [floor, ceiling].

    (x - mean) / std is computed in float32 and rounded to the dtype of the weight; zeros are padded after that, as in a
    network that normalises first. Products are summed in float32, in no fixed order, and rounded once, after the clamp.
    With a float32 weight, torch's convolution is used, under torch's setting of TF32.

    Args:
        x: float32 images [N, C, H, W], C at most 4.
        mean, std: float32 [C], std > 0.
        weight: float32, float16 or bfloat16 [O, C, 3, 3], O a multiple of 8.
        bias: [O], of the weight's dtype.
        floor, ceiling: bounds of the result: (0, inf) is ReLU, (-inf, inf) no activation. NaN stays NaN.

    Returns:
        [N, O, H, W] in the weight's dtype, channels_last, a constant to autograd.

    Raises:
        TypeError: tensors of other dtypes.
        ValueError: shapes or devices that differ, an O that is no multiple of 8, floor > ceiling.

    Source: the first layers of He et al. 2016 for CIFAR, with BatchNorm folded, behind a normalisation of the images.
    """
    _images("x", x)
    channels = x.shape[1]
    _weight(weight, channels, x.device)
    for name, value in (("mean", mean), ("std", std)):
        _vector(name, value, channels, torch.float32, x.device)
    _vector("bias", bias, weight.shape[0], weight.dtype, x.device)
    if not floor <= ceiling:
        raise ValueError(f"floor, ceiling: {floor}, {ceiling}, expected floor <= ceiling")
    return _stem_conv_relu(*_constants(x, mean, std, weight, bias), floor, ceiling)


def stem_conv_step_(
    x_adv: Tensor,
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    eps: float | Tensor,
    alpha: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    targeted: bool = False,
    stats: Tensor | None = None,
) -> Tensor:
    """The backward of the stem's convolution and one PGD step along the sign of the result, in place.

    The gradient of the normalised images, the transposed convolution of grad with weight, is summed in float32, and a
    step along its sign is taken as in `pgd_step_linf_`. Dividing it by std, which is positive, would not change its
    sign. The order of the sum is not fixed, so the sign of a sum close to 0 may vary.

    Args:
        x_adv: float32 images [K*N, C, H, W], overwritten; C at most 4.
        grad: gradient of the loss with respect to the convolution's result, [K*N, O, H, W], of the weight's dtype.
        weight: float32, float16 or bfloat16 [O, C, 3, 3], O a multiple of 8.
        x: float32 centres [N, C, H, W].
        eps: radius, a float or a tensor [K*N].
        alpha: step size > 0, a float or a tensor [K*N] (0 is accepted for a sample whose eps is 0).
        targeted: descend the loss instead of ascending it.
        stats: int64 [2], to which the numbers of zero and NaN entries of the gradient are added.

    Returns:
        x_adv.

    Raises:
        TypeError: tensors of other dtypes.
        ValueError: eps negative or NaN, alpha not positive, lengths, shapes or devices that differ, an O that is no
            multiple of 8, x_adv that requires grad, lo > hi.

    Source: `pgd_step_linf_`; the transposed convolution is the adjoint of `stem_conv_relu`'s.
    """
    _images("x", x)
    checks.same_images("x_adv", x_adv, "x", x, candidates=True)
    checks.in_place("x_adv", x_adv)
    rows, channels, height, width = x_adv.shape
    _weight(weight, channels, x.device)
    _same_dtype("grad", grad, weight.dtype, "weight")
    if grad.shape != (rows, weight.shape[0], height, width) or grad.device != x.device:
        raise ValueError(
            f"grad: shape {tuple(grad.shape)} on {grad.device}, expected "
            f"{(rows, weight.shape[0], height, width)} on {x.device}"
        )
    validate.box(lo, hi)
    radius = checks.per_row("eps", eps, rows, x)
    step = checks.per_row("alpha", alpha, rows, x, positive=True)
    if stats is not None:
        checks.int64_vector("stats", stats, 2, x.device)
    constants = _constants(grad, weight, x)
    _stem_conv_step_(x_adv, *constants, radius, step, lo, hi, targeted, stats)
    return x_adv


def _constants(*tensors: Tensor) -> list[Tensor]:
    return [checks.constant(tensor) for tensor in tensors]


def _images(name: str, x: Tensor) -> None:
    checks.images(name, x)
    if x.dtype is not torch.float32:
        raise TypeError(f"{name}: dtype {x.dtype}, expected float32")
    if x.dim() != 4 or not 1 <= x.shape[1] <= CHANNELS or 0 in x.shape[2:]:
        raise ValueError(
            f"{name}: shape {tuple(x.shape)}, expected [N, C, H, W] of 1 to {CHANNELS} channels"
        )


def _weight(weight: Tensor, channels: int, device: torch.device) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: {type(weight).__name__}, expected a torch.Tensor")
    if weight.dtype not in WEIGHTS:
        raise TypeError(f"weight: dtype {weight.dtype}, expected float32, float16 or bfloat16")
    outputs = weight.shape[0] if weight.dim() else 0
    if weight.shape != (outputs, channels, 3, 3) or not outputs or outputs % MULTIPLE:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)}, expected [O, {channels}, 3, 3] with O a multiple of {MULTIPLE}"
        )
    if weight.device != device:
        raise ValueError(f"weight: device {weight.device}, expected {device}")


def _vector(
    name: str, value: Tensor, length: int, dtype: torch.dtype, device: torch.device
) -> None:
    _same_dtype(name, value, dtype, "weight" if name == "bias" else "x")
    if value.shape != (length,) or value.device != device:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)} on {value.device}, expected [{length}] on {device}"
        )


def _same_dtype(name: str, value: Tensor, dtype: torch.dtype, like: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {type(value).__name__}, expected a torch.Tensor")
    if value.dtype is not dtype:
        raise TypeError(f"{name}: dtype {value.dtype}, expected that of {like}, {dtype}")
