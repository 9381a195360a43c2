"""What one would write in eager torch for each op, from the arguments that `prepared` makes.

They are the baselines, eager and compiled. Radii and step sizes have the dtype of the images and the shape that
broadcasts, made once outside the timed region, and gradients are not counted: each choice favours the baseline.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def prepared(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an op's schema in the form that its expression takes."""
    if name == "project_linf":
        x_adv, x, eps, lo, hi = args
        return _split(x_adv, x), x, _column(eps, x), lo, hi
    if name == "pgd_step_linf_":
        x_adv, grad, x, eps, alpha, lo, hi, _, _ = args
        return _split(x_adv, x), _split(grad, x), x, _column(eps, x), _column(alpha, x), lo, hi
    if name == "random_start_linf":
        x, eps, _, _, lo, hi = args
        return x, _column(eps, x), lo, hi
    if name == "ce_cotangent":
        logits, y, _ = args
        return logits, y.repeat(len(logits) // len(y)).unsqueeze(1)
    if name == "stem_conv_relu":
        x, mean, std, weight, bias, _, _ = args
        return x, mean[:, None, None], std[:, None, None], weight, bias
    if name == "stem_conv_step_":
        x_adv, grad, weight, x, eps, alpha, lo, hi, _, _ = args
        split = (_split(x_adv, x), x, _column(eps, x), _column(alpha, x))
        return grad, weight, *split, lo, hi
    if name == "scale_shift_relu":
        x, residual, scale, shift, _, _ = args
        return x, residual, scale, shift, torch.zeros_like(shift), torch.ones_like(scale)
    if name == "scale_shift_relu_backward_":
        grad, out, scale, residual, _, _ = args
        return grad, out, scale.to(grad.dtype).view(-1, 1, 1), residual
    return args


def project_linf(x_adv: Tensor, x: Tensor, radius: Tensor, lo: float, hi: float) -> Tensor:
    return torch.clamp(x + torch.clamp(x_adv - x, min=-radius, max=radius), min=lo, max=hi)


def pgd_step_linf_(
    x_adv: Tensor, grad: Tensor, x: Tensor, radius: Tensor, step: Tensor, lo: float, hi: float
) -> Tensor:
    """Sign, scale, add, project, clamp: the loop body of torchattacks with a radius per sample."""
    moved = x_adv + step * grad.sign()
    return torch.clamp(x + torch.clamp(moved - x, min=-radius, max=radius), min=lo, max=hi)


def random_start_linf(x: Tensor, radius: Tensor, lo: float, hi: float) -> Tensor:
    noise = torch.rand(radius.shape[0], *x.shape, dtype=x.dtype, device=x.device)
    return torch.clamp(x + (2 * noise - 1) * radius, min=lo, max=hi)


def ce_cotangent(logits: Tensor, y: Tensor) -> Tensor:
    """The plain gradient, softmax - onehot, without the proof against saturation."""
    return F.softmax(logits, 1) - torch.zeros_like(logits).scatter_(1, y, 1.0)


def select_epsilon_(
    memory: Tensor,
    index: Tensor,
    logits: Tensor,
    y: Tensor,
    gamma: float,
    beta: float,
    eps_min: float,
    eps_max: float,
    clamp_candidate: bool,
    misclassified: None,
) -> tuple[Tensor, Tensor]:
    robust = logits.view(3, len(y), -1).argmax(2) == y
    choice = torch.where(robust[0], 0, torch.where(robust[1], 1, 2))
    prev = memory[index]
    candidate = torch.where(robust[0], prev + gamma, torch.where(robust[1], prev, prev - gamma))
    eps = ((1 - beta) * prev + beta * candidate).clamp(eps_min, eps_max)
    memory[index] = eps
    return eps, choice


def random_crop_flip(
    images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool
) -> Tensor:
    """One gather by computed pixel numbers; crops and flips drawn by torch.randint."""
    n, height, width, channels = len(index), *images.shape[1:]
    places = 2 * padding + 1
    draw = torch.randint(2 * places**2, (n, 1), device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(draw % 2 == 1, width - 1 - columns, columns)
    row = torch.arange(height, device=images.device) + draw // 2 // places - padding
    column = columns + draw // 2 % places - padding
    row, column = (
        size - 1 - (size - 1 - place.abs()).abs()
        for place, size in ((row, height), (column, width))
    )
    pixels = (row[:, :, None] * width + column[:, None, :]).flatten(1)
    planes = images.index_select(0, index).permute(0, 3, 1, 2).reshape(n, channels, -1)
    chosen = planes.gather(2, pixels.unsqueeze(1).expand(-1, channels, -1))
    return chosen.view(n, channels, height, width).float().div(255)


def stem_conv_relu(x: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """On CUDA with bias and ReLU in cuDNN's epilogue, which torch reaches by a function of its own."""
    images = ((x - mean) / std).to(weight.dtype, memory_format=torch.channels_last)
    if x.is_cuda and not torch.compiler.is_compiling():
        return torch.cudnn_convolution_relu(images, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    return F.relu(F.conv2d(images, weight, bias, padding=1))


def stem_conv_step_(
    grad: Tensor,
    weight: Tensor,
    x_adv: Tensor,
    x: Tensor,
    radius: Tensor,
    step: Tensor,
    lo: float,
    hi: float,
) -> Tensor:
    """The gradient of the images from cuDNN, in half precision, then the step."""
    slope = F.conv_transpose2d(grad, weight, padding=1).view(x_adv.shape)
    return pgd_step_linf_(x_adv, slope, x, radius, step, lo, hi)


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> Tensor:
    """Autograd's sum of two gradients, and its backward of ReLU."""
    total = grad if other is None else grad + other
    return torch.ops.aten.threshold_backward(total, out, 0.0)


def scale_shift_relu(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    """A pre-activation block's sum, and BatchNorm in eval mode and ReLU of it."""
    total = x if residual is None else x + residual
    return total, F.relu_(F.batch_norm(total, mean, var, weight, bias, eps=0.0))


def scale_shift_relu_backward_(
    grad: Tensor, out: Tensor, column: Tensor, residual: Tensor | None
) -> Tensor:
    """The mask, the factor and the shortcut's gradient, without other results of autograd's BatchNorm."""
    scaled = torch.ops.aten.threshold_backward(grad, out, 0.0) * column
    return scaled if residual is None else scaled + residual


def _split(rows: Tensor, x: Tensor) -> Tensor:
    """[K*N, ...] as [K, N, ...], so that x broadcasts."""
    return rows.view(-1, *x.shape)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """[K*N] as [K, N, 1, ...] in the dtype of the images."""
    return values.to(x.dtype).view(-1, len(x), *[1] * (x.dim() - 1))
