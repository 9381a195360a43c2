"""The ops of the `iaat_fast` namespace: schemas, shapes for tracing, and the one gradient.

`Library.define` + `impl` rather than the `custom_op` decorator: a call costs about 3 us instead of about 50.
Implementations are bound by `backends.py`; arguments are checked by the public functions in `__init__.py` and
`layers.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iaat_fast.ops.layout import convolved, memory_format

NAMESPACE = "iaat_fast"

SCHEMAS = {
    "project_linf": "(Tensor x_adv, Tensor x, Tensor eps, float lo, float hi) -> Tensor",
    "pgd_step_linf_": (
        "(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor eps, Tensor alpha, float lo, float hi, "
        "bool targeted, Tensor(b!)? stats) -> ()"
    ),
    "random_start_linf": (
        "(Tensor x, Tensor eps, Tensor seed, Tensor index, float lo, float hi) -> Tensor"
    ),
    "ce_cotangent": "(Tensor logits, Tensor y, bool targeted) -> Tensor",
    "select_epsilon_": (
        "(Tensor(a!) memory, Tensor index, Tensor logits, Tensor y, float gamma, float beta, "
        "float eps_min, float eps_max, bool clamp_candidate=False, Tensor? misclassified=None) "
        "-> (Tensor eps, Tensor choice)"
    ),
    "random_crop_flip": (
        "(Tensor images, Tensor index, Tensor seed, int padding, bool flip) -> Tensor"
    ),
    "relu_backward_": (
        "(Tensor(a!) grad, Tensor out, Tensor? other, float floor, float ceiling) -> ()"
    ),
    "scale_shift_relu": (
        "(Tensor(a!) x, Tensor? residual, Tensor scale, Tensor shift, float floor, float ceiling) "
        "-> Tensor"
    ),
    "scale_shift_relu_backward_": (
        "(Tensor(a!) grad, Tensor out, Tensor scale, Tensor? residual, float floor, float ceiling) "
        "-> ()"
    ),
    "stem_conv_relu": (
        "(Tensor x, Tensor mean, Tensor std, Tensor weight, Tensor bias, float floor, float ceiling) "
        "-> Tensor"
    ),
    "stem_conv_step_": (
        "(Tensor(a!) x_adv, Tensor grad, Tensor weight, Tensor x, Tensor eps, Tensor alpha, float lo, "
        "float hi, bool targeted, Tensor(b!)? stats) -> ()"
    ),
}

library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def _fake(name: str) -> Any:
    return torch.library.register_fake(f"{NAMESPACE}::{name}", lib=library)


@_fake("project_linf")
def _(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    return torch.empty_like(x_adv, memory_format=memory_format(x_adv))


@_fake("pgd_step_linf_")
def _(
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
    return None


@_fake("random_start_linf")
def _(x: Tensor, eps: Tensor, seed: Tensor, index: Tensor, lo: float, hi: float) -> Tensor:
    out = x.new_empty((eps.shape[0], *x.shape[1:]))
    return out.contiguous(memory_format=memory_format(x))


@_fake("ce_cotangent")
def _(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@_fake("select_epsilon_")
def _(
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
    return memory.new_empty(index.shape), index.new_empty(index.shape)


@_fake("random_crop_flip")
def _(images: Tensor, index: Tensor, seed: Tensor, padding: int, flip: bool) -> Tensor:
    _, height, width, channels = images.shape
    return images.new_empty((index.shape[0], channels, height, width), dtype=torch.float32)


@_fake("relu_backward_")
def _(grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float) -> None:
    return None


@_fake("scale_shift_relu")
def _(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


@_fake("scale_shift_relu_backward_")
def _(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    floor: float,
    ceiling: float,
) -> None:
    return None


@_fake("stem_conv_relu")
def _(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    weight: Tensor,
    bias: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    return convolved(x, weight)


@_fake("stem_conv_step_")
def _(
    x_adv: Tensor,
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    eps: Tensor,
    alpha: Tensor,
    lo: float,
    hi: float,
    targeted: bool,
    stats: Tensor | None,
) -> None:
    return None


def _save_for_projection(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_adv, x, eps, ctx.lo, ctx.hi = inputs
    ctx.save_for_backward(x_adv, x, eps, output)


def _projection_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradient passes where neither the ball nor the box holds the element."""
    x_adv, x, eps, output = ctx.saved_tensors
    copies = x_adv.shape[0] // max(x.shape[0], 1)
    centre = x.repeat(copies, *[1] * (x.dim() - 1)) if copies > 1 else x
    radius = eps.view(-1, *[1] * (x.dim() - 1))
    inside = ((x_adv - centre).abs() < radius) & (output > ctx.lo) & (output < ctx.hi)
    return grad * inside, None, None, None, None


torch.library.register_autograd(
    f"{NAMESPACE}::project_linf",
    _projection_backward,
    setup_context=_save_for_projection,
    lib=library,
)
