"""The interface of a gradient source, and the source that uses autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from iaat_fast.attacks import inputs
from iaat_fast.attacks.model.ensemble import Ensemble, joined, refuse_other_classes, running
from iaat_fast.attacks.model.mode import private_copy

Forward = Callable[[Tensor], Tensor]
Cotangent = Callable[[Tensor], Tensor]
"""Maps logits [N, C] to the gradient of the loss with respect to them, [N, C]."""

_MADE_IN_INFERENCE_MODE = (
    "model: weights made in torch.inference_mode, expected others: autograd cannot go through them; make the model "
    "outside, or clone them"
)


class Source(Protocol):
    """Logits and gradients of images."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, ...]."""

    def input_vjp(self, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor | None]:
        """Logits, and the gradient of the images for `cotangent(logits)`; None if logits do not depend on images."""

    @property
    def refresh(self) -> Callable[[], None]:
        """A function that copies the live weights."""


class ByAutograd:
    """A model, or a copy of it, differentiated by autograd.

    Args:
        model: maps images to logits.
        dtype: what images are cast to; None: not cast.
        autocast: half precision to run under; None: no autocast.
        refresh: copies the live weights; None if the model is the live one.
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
            logits: Tensor = inputs.logits_in(self._model(private_copy(x, self._dtype)))
            return logits

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


class MeanOfLosses:
    """The members of an ensemble, each differentiated on its own: the mean of the gradients of its loss.

    Args:
        ensemble: of losses.
        autocast: half precision to run under.
    """

    def __init__(self, ensemble: Ensemble, *, autocast: torch.dtype | None = None) -> None:
        self._mean = ensemble.mean
        models, self._weights = running(ensemble)
        self._members = [ByAutograd(model, autocast=autocast) for model in models]
        self.refresh = _nothing

    def forward(self, x: Tensor) -> Tensor:
        return joined(self._mean, [member.forward(x) for member in self._members], self._weights)

    def input_vjp(self, x: Tensor, cotangent: Cotangent) -> tuple[Tensor, Tensor | None]:
        classes: list[int] = []

        def checked(logits: Tensor) -> Tensor:
            given = cotangent(logits)
            classes.append(logits.shape[1])
            refuse_other_classes(classes)
            return given

        each, total, weights = [], None, self._weights
        for number, member in enumerate(self._members):
            logits, grad = member.input_vjp(x, checked)
            if grad is None:
                return logits, None
            each.append(logits)
            if weights is not None:
                grad = grad * weights[number]
            total = grad if total is None else total + grad
        assert total is not None
        logits = joined(self._mean, each, weights)
        cotangent(logits)  # last, for whoever keeps the logits that it is given
        return logits, total / len(each) if weights is None else total


def _nothing() -> None:
    """The refresh of a live model."""
