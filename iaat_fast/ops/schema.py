"""The ops of torch's `iaat_fast` namespace: schemas, fake results for tracing, and the gradient of project_linf.

`Library.define` + `impl` rather than the `custom_op` decorator: a call costs about 3 us instead of about 50.
Implementations are bound by `backends.py`; arguments are checked by the public functions in `functional.py`,
`layers.py` and `stem.py`.
"""

from __future__ import annotations

from collections.abc import Callable
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

# Empty results of the right shape and strides, for tracing; each function names the arguments that decide them.
_RESULTS: dict[str, Callable[..., Any]] = {
    "project_linf": lambda x_adv, *_: _like(x_adv),
    "random_start_linf": lambda x, eps, *_: x.new_empty((eps.shape[0], *x.shape[1:])).contiguous(
        memory_format=memory_format(x)
    ),
    "ce_cotangent": lambda logits, *_: logits.new_empty(logits.shape),
    "select_epsilon_": lambda memory, index, *_: (
        memory.new_empty(index.shape),  # eps
        index.new_empty(index.shape),  # choice
    ),
    "random_crop_flip": lambda images, index, *_: images.new_empty(
        (index.shape[0], images.shape[3], *images.shape[1:3]), dtype=torch.float32
    ),
    "scale_shift_relu": lambda x, *_: _like(x),
    "stem_conv_relu": lambda x, mean, std, weight, *_: convolved(x, weight),
}


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _nothing(*_: Any) -> None:
    """The fake result of ops that only write in place."""


library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _RESULTS.get(_name, _nothing), lib=library)


def _save_for_projection(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_adv, x, eps, ctx.lo, ctx.hi = inputs
    ctx.save_for_backward(x_adv, x, eps, output)


def _projection_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradient passes where the element lies strictly inside the ball and the box."""
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
