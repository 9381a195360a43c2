"""What gradients of images come from: the live model, a copy of it, or a program; and whether a copy is a true one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from iaat_fast.attacks.unshadowable import Unshadowable, brief

Cotangent = Callable[[Tensor], Tensor]

# How far a copy in the live precision may be off, |difference| / |live|, over some images. Folding rounds differently:
# logits by 1e-6, gradients by up to 1e-3 where that flips a ReLU. A wrong trace is off by about 1.
_LOGITS = {"fp32": 1e-3, "tf32": 1e-2}
_GRADIENT = {"fp32": 0.05, "tf32": 0.2}
# In half precision a copy is judged by what autocast does to the live model: deep networks lose most of their bits in
# either (a ResNet-50's logits 0.26 in the copy, 0.30 under autocast). Twice that, since over a few images both are
# noise; at least some roundings of 8 bits; and never as much as unrelated numbers, or zeros, are off.
_TIMES_AUTOCAST = 2.0
_AT_LEAST = {"bf16": 0.05, "fp16": 0.01}
_AT_MOST = 0.95


_MADE_IN_INFERENCE_MODE = (
    "model: weights made in torch.inference_mode, expected others: autograd cannot go through them; make the model "
    "outside, or clone them"
)


class Source(Protocol):
    """Logits and gradients of images."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, ...]."""

    def input_vjp(self, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor | None]:
        """Logits, and the gradient of the images for `cotangent(logits)`; None where there is none."""

    @property
    def refresh(self) -> Callable[[], None]:
        """Called, takes over the live weights."""


class ByAutograd:
    """A model, or a copy of it, differentiated by autograd.

    Args:
        model: maps images to logits.
        dtype: what images are cast to, None for their own.
        autocast: half precision to run under.
        refresh: takes over the live weights.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._dtype, self._autocast = model, dtype, autocast
        self.refresh = refresh or _nothing

    def forward(self, x: Tensor) -> Tensor:
        half: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._autocast is not None:
            half = torch.autocast(x.device.type, self._autocast)
        with half:
            return self._model(own(x, self._dtype))

    def input_vjp(self, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor | None]:
        leaf = x.detach().requires_grad_()
        try:
            logits = self.forward(leaf)
        except RuntimeError as error:
            if "Inference tensors cannot be saved for backward" not in str(error):
                raise
            raise ValueError(_MADE_IN_INFERENCE_MODE) from error
        given = cotangent(logits.detach() if isinstance(logits, Tensor) else logits)
        if not logits.requires_grad:
            return logits.detach(), None
        (grad,) = torch.autograd.grad(logits, leaf, given.to(logits.dtype), allow_unused=True)
        return logits.detach(), grad


def own(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Images for a forward to do as it likes with: one may normalise them in place, where the attack still needs them.

    A copy takes 10 us of a step's host time; what was written by `x.data` or numpy could not be told afterwards.
    """
    return x.to(x.dtype if dtype is None else dtype, copy=True)


def compare(
    copy: Source,
    live: Callable[[Tensor], Tensor],
    x: Tensor,
    precision: str,
    half: torch.dtype | None,
) -> None:
    """Raise Unshadowable unless a copy gives the live model's logits and gradients, up to its precision.

    Args:
        copy: made of the live model.
        live: the model.
        x: some images.
        precision, half: "bf16" and torch.bfloat16, say; None for a precision that is no half one.
    """
    true, slope = _seen(ByAutograd(live), x)
    try:
        logits, grad = _seen(copy, x)
    # The copy runs the user's forward in another dtype: whatever that raises, the copy is of no use.
    except Exception as error:
        raise Unshadowable(f"its copy failed: {brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != true.shape:
        raise Unshadowable("its copy returns something else")
    if (grad is None) != (slope is None):
        raise Unshadowable("its copy has a gradient where it has none, or the other way round")
    if half is None:
        limits = (_LOGITS[precision], _GRADIENT[precision])
    else:
        limits = _limits_of_autocast(live, x, true, slope, precision, half)
    errors = (float(off(logits, true)), _off_slope(grad, slope, without=0.0))
    for what, error_size, limit in zip(("logits", "gradients"), errors, limits, strict=True):
        if not error_size <= limit:
            raise Unshadowable(
                f"its copy's {what} are off by {error_size:.1e}, more than {limit:.1g}"
            )


def _limits_of_autocast(
    live: Callable[[Tensor], Tensor],
    x: Tensor,
    true: Tensor,
    slope: Tensor | None,
    precision: str,
    half: torch.dtype,
) -> tuple[float, float]:
    try:
        logits, grad = _seen(ByAutograd(live, autocast=half), x)
        found = [float(off(logits, true)), _off_slope(grad, slope, without=1.0)]
    except (RuntimeError, ValueError):  # no autocast for this device, or of this model
        found = [_AT_MOST, _AT_MOST]
    low, high = _limit(found[0], precision), _limit(found[1], precision)
    return low, high


def _limit(autocast: float, precision: str) -> float:
    if not autocast >= 0:  # NaN: an overflow of autocast's says nothing of the copy
        return _AT_MOST
    return min(max(_TIMES_AUTOCAST * autocast, _AT_LEAST[precision]), _AT_MOST)


def _nothing() -> None:
    """A live model is always fresh."""


def _seen(source: Source, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and the gradient for a cotangent that no two classes share."""

    def cotangent(logits: Tensor) -> Tensor:
        classes = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        return torch.sin(classes.double()).to(logits.dtype).expand_as(logits)

    with torch.enable_grad():
        return source.input_vjp(x, cotangent)


def _off_slope(grad: Tensor | None, slope: Tensor | None, *, without: float) -> float:
    return without if grad is None or slope is None else float(off(grad, slope))


def off(value: Tensor, true: Tensor) -> Tensor:
    """|value - true| / |true|, double []; equal infinities, of classes that are masked, are no difference."""
    value, true = value.double(), true.double()
    difference = torch.where(value == true, 0.0, value - true)
    size = torch.where(true.isinf(), 0.0, true).norm()
    return difference.norm() / size.clamp(min=1e-30)
