"""FGSM, one full step along the sign of the gradient, and MI-FGSM, PGD with a momentum of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.options import PGDOptions, StepSize
from iaat_fast.attacks.pgd import PGD, Run

# The registered op, without the public function's checks: a call checks its arguments itself.
_pgd_step_linf_ = torch.ops.iaat_fast.pgd_step_linf_.default


class FGSM(PGD):
    """The fast gradient sign method: `PGD` with one step of size eps from x itself.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C].
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N].
        **options: the keywords of `PGD`; `random_start=True` gives the variant of Wong et al. 2020.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples", Section 4.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        *,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:
        super().__init__(model, eps, _full_step, 1, random_start=random_start, **options)


def _full_step(eps: Tensor) -> Tensor:
    return eps


class MIFGSM(PGD):
    """The momentum iterative fast gradient sign method: `PGD` that steps along the sign of

        momentum = decay * momentum + gradient / mean |gradient|

    The paper divides by the gradient's L1 norm, which differs by a factor common to all steps and changes no sign.
    `stats` counts the zeros and NaNs of the momentum.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C].
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N].
        alpha: step size, as `PGD`'s; the paper takes eps / steps.
        steps: number of gradient steps; 0 takes none and gives the start, a random point or x itself, with a warning.
        decay: factor of the old momentum, mu in the paper; 0 gives `PGD`.
        **options: the keywords of `PGD`; it starts at x, unless `random_start=True`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Dong et al. 2018, "Boosting adversarial attacks with momentum", Algorithm 1.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        decay: float = 1.0,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:
        validate.number("decay", decay)
        super().__init__(model, eps, alpha, steps, random_start=random_start, **options)
        self.decay = decay

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        run = super()._begin(call, x_adv, rows)
        # In a half type small entries would round to 0 and lose their signs.
        wide = torch.promote_types(x_adv.dtype, torch.float32)
        return dataclasses.replace(run, momentum=torch.zeros_like(x_adv, dtype=wide))

    def _advance(self, run: Run, cotangent: Callable[[Tensor], Tensor], stats: Tensor) -> None:
        direction = self._direction(run, self._gradient(run, cotangent))
        box = self._rule()
        _pgd_step_linf_(run.x_adv, direction, run.x, run.eps, run.alpha, *box, stats)

    def _gradient(self, run: Run, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient [n, ...] that a step adds to the momentum, before it is divided by its mean |gradient|."""
        return self.network.gradient(run.x_adv, cotangent)

    def _direction(self, run: Run, grad: Tensor) -> Tensor:
        """Add the gradient to the momentum, in place; returns the tensor whose sign the step follows."""
        momentum = run.momentum
        assert momentum is not None
        wide = grad.to(momentum.dtype)
        seen = wide if run.mask is None else torch.where(run.mask, wide, 0.0)
        size = seen.abs().flatten(1).mean(1)
        size = torch.where(size == 0, 1.0, size)
        momentum.mul_(self.decay).add_(wide / as_column(size, wide))
        if momentum.dtype is run.x_adv.dtype:
            return momentum
        # The sign, because a cast would round small entries to 0. NaN stays NaN, so that it is counted.
        return torch.where(momentum.isnan(), momentum, momentum.sign()).to(run.x_adv.dtype)
