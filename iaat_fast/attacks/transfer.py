"""NI-, SI-NI-, VMI- and VNI-FGSM: versions of MI-FGSM, for transfer to other models, with gradients at other points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses
from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.fgsm import MIFGSM
from iaat_fast.attacks.options import PGDOptions, StepSize
from iaat_fast.attacks.pgd import Run

# The registered op, without the public function's checks: a call checks its arguments itself.
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default

# Odd constants (from L'Ecuyer 1999, and of Fibonacci hashing) whose multiples are added to the key for each draw, and
# to the sample number for each candidate.
_NEXT_KEY = 0xD1342543DE82EF95 - 2**64
_NEXT_CANDIDATE = 0x9E3779B1


class TransferAttack(MIFGSM):
    """Base of the attacks whose momentum adds gradients at other points than the iterate.

    A subclass defines these in `_gradient`. If its steps are random, it sets `_draws` and uses `uniform`: the noise
    depends on the sample's number, not on the batch, nor on which samples have left it. `_passes` is the number of
    gradients per step.
    """

    def _step(self, call: Call, run: Run) -> Tensor:
        if not self.early_stop:
            return super()._step(call, run)
        logits = self.network.predict(run.x_adv)  # the step's gradients are not taken at x_adv
        super()._step(call, run)
        return logits

    def _start(self, call: Call, restart: int) -> Tensor:
        call.begin_restart(restart)  # also without a random start, for the noise of the steps
        return super()._start(call, restart)

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        run = super()._begin(call, x_adv, rows)
        return dataclasses.replace(run, draws=_draws(call, rows)) if self._draws else run

    def _attack(self, call: Call) -> Tensor:
        call.planned *= self._passes
        return super()._attack(call)

    def _ahead(self, run: Run) -> Tensor:
        """Nesterov's point x_adv + alpha * decay * momentum, or with a minus sign for targets."""
        assert run.momentum is not None
        reach = self.decay * run.alpha
        step = as_column(reach, run.momentum) * run.momentum
        ahead = run.x_adv - step if self._descends else run.x_adv + step
        return pin_(ahead.to(run.x_adv.dtype), run.x, run.mask)


class _Summed(TransferAttack):
    """Base of the attacks that sum a sample's gradients at several points, so that these must not be rescaled."""

    def _cotangent(self, logits: Tensor, goal: Tensor, source: Tensor | None = None) -> Tensor:
        return losses.cotangent(self.loss, logits, goal, targeted=self._descends, source=source)


class NIFGSM(TransferAttack):
    """NI-FGSM: `MIFGSM` whose gradient is taken at Nesterov's point x_adv + alpha * decay * momentum.

    As in the released code and torchattacks, gradients are divided by their mean |entry|. With the paper's L1 norm the
    point would hardly differ from x_adv. The point may lie outside the box.

    Args:
        model, eps, alpha, steps, decay: as `MIFGSM`'s.
        **options: the keywords of `PGD`; it starts at x, unless `random_start=True`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Lin et al. 2020, "Nesterov accelerated gradient and scale invariance for adversarial attacks",
        arXiv:1908.06281, Equations 6 to 8.
    """

    def _gradient(self, run: Run, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        return self.network.gradient(self._ahead(run), cotangent)


class SINIFGSM(_Summed):
    """SI-NI-FGSM: `NIFGSM` that averages the gradients at m copies of the point, copy i scaled by 2**-i, i = 0 ... m-1.

    Copies are scaled towards `lo`, black, which is 0 in the paper. Averaging needs the true sizes of the gradients, so
    the plain cross-entropy is used, whose gradients vanish where it saturates.

    Args:
        model, eps, alpha, steps, decay: as `MIFGSM`'s.
        m: number of copies, at least 1; a step takes m gradients.
        **options: the keywords of `PGD`; it starts at x, unless `random_start=True`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Lin et al. 2020, arXiv:1908.06281, Equation 9 and Algorithm 1.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        decay: float = 1.0,
        m: int = 5,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:
        validate.integer("m", m, 1)
        super().__init__(
            model, eps, alpha, steps, decay=decay, random_start=random_start, **options
        )
        self.m = self._passes = m

    def _gradient(self, run: Run, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        assert run.momentum is not None
        light = self._ahead(run) - self._lo
        total = torch.zeros_like(run.momentum)
        for i in range(self.m):
            total += self.network.gradient(light * 2.0**-i + self._lo, cotangent) * 2.0**-i
        return total / self.m


class VMIFGSM(_Summed):
    """VMI-FGSM: `MIFGSM` that adds to its gradient the "variance" of the last step.

    The variance is the mean gradient at N random neighbours of the iterate, minus the gradient at the iterate.
    Neighbours are uniform in the ball of radius beta * eps around x_adv, and not clamped to the box. Their noise
    depends on the seed, the neighbour's number, the sample's number and the restart, so that restarts need no random
    start. As in `SINIFGSM`, the plain cross-entropy is used.

    Args:
        model, eps, alpha, steps, decay: as `MIFGSM`'s.
        N: number of neighbours, at least 1; a step takes N + 1 gradients.
        beta: radius of the neighbourhood, relative to eps.
        **options: the keywords of `PGD`; it starts at x, unless `random_start=True`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Wang and He 2021, "Enhancing the transferability of adversarial attacks through variance tuning",
        arXiv:2103.15571, Equation 6 and Algorithm 1.
    """

    _draws = True

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        decay: float = 1.0,
        N: int = 5,
        beta: float = 1.5,
        random_start: bool = False,
        **options: Unpack[PGDOptions],
    ) -> None:
        validate.integer("N", N, 1)
        validate.number("beta", beta)
        super().__init__(
            model, eps, alpha, steps, decay=decay, random_start=random_start, **options
        )
        self.N, self.beta = N, beta
        self._passes = N + 1

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        run = super()._begin(call, x_adv, rows)
        assert run.momentum is not None
        return dataclasses.replace(run, variance=torch.zeros_like(run.momentum))

    def _gradient(self, run: Run, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        assert run.variance is not None
        own = self.network.gradient(self._point(run), cotangent).to(run.variance.dtype)
        tuned, radius = own + run.variance, self.beta * run.eps
        total = torch.zeros_like(own)
        for _ in range(self.N):
            neighbour = pin_(uniform(run, run.x_adv, radius), run.x, run.mask)
            total += self.network.gradient(neighbour, cotangent)
        run.variance.copy_(total / self.N - own)
        return tuned

    def _point(self, run: Run) -> Tensor:
        """The point [n, ...] of the step's own gradient, to which the variance is added."""
        return run.x_adv


class VNIFGSM(VMIFGSM):
    """VNI-FGSM: `VMIFGSM` whose own gradient is taken at the point of `NIFGSM`; neighbours are still those of x_adv.

    Args:
        model, eps, alpha, steps, decay, N, beta, **options: as `VMIFGSM`'s.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Wang and He 2021, arXiv:2103.15571, Section 3.2, and the code released with it.
    """

    def _point(self, run: Run) -> Tensor:
        return self._ahead(run)


def uniform(run: Run, x: Tensor, radius: Tensor) -> Tensor:
    """x [n, ...] plus noise uniform in (-radius, radius), radius [n]; counts the draw in `run.draws`, in place.

    The noise is that of `ops.random_start_linf` with key = seed + number of the draw * _NEXT_KEY, draws counted from 1
    in each restart, and sample = sample number + candidate * _NEXT_CANDIDATE modulo 2**32.
    """
    assert run.draws is not None
    run.draws[:, 3] += 1
    key, restart, _, number = run.draws[0].unbind()
    stream = torch.stack([key + number * _NEXT_KEY, restart, torch.zeros_like(key)])
    return _random_start_linf(
        x, radius, stream, run.draws[:, 2].contiguous(), -torch.inf, torch.inf
    )


def _draws(call: Call, rows: Tensor | None) -> Tensor:
    """int64 [n, 4]: key, restart, sample number combined with candidate, and number of draws so far.

    Only the third differs between rows.
    """
    if rows is None:
        rows = torch.arange(call.rows, device=call.x.device)
    n = len(call.y)
    key, restart, first = call.stream.unbind()
    sample = call.index[rows % n] + (first + rows // n) * _NEXT_CANDIDATE & 0xFFFFFFFF
    zero = torch.zeros_like(sample)
    return torch.stack([key + zero, restart + zero, sample, zero], 1)
