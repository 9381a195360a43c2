"""NI-, SI-NI-, VMI- and VNI-FGSM: MI-FGSM for transfer, whose gradients are taken around the iterates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses
from iaat_fast.attacks.active_set import as_column
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.fgsm import MIFGSM
from iaat_fast.attacks.options import PGDOptions, StepSize
from iaat_fast.attacks.pgd import Run

# The registered op, without the public function's checks: a call checks its arguments itself.
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default

# Odd numbers (of L'Ecuyer 1999 and of Fibonacci hashing), a multiple of which leads to the key of a draw, and to the
# number of a candidate's sample.
_NEXT_KEY = 0xD1342543DE82EF95 - 2**64
_NEXT_CANDIDATE = 0x9E3779B1


class TransferAttack(MIFGSM):
    """Base of the attacks that add to MI-FGSM's momentum a gradient that is not, or not only, the iterate's.

    A subclass says in `_gradient` what it adds. Random ones draw by `uniform`, from `run.draws`: the noise follows the
    sample, and depends neither on the batch nor on who has left it.
    """

    def _step(self, call: Call, run: Run) -> Tensor:
        if not self.early_stop:
            return super()._step(call, run)
        logits = self.network.predict(run.x_adv)  # which no gradient may have come by
        super()._step(call, run)
        return logits

    def _start(self, call: Call, restart: int) -> Tensor:
        call.begin_restart(restart)  # which the draws of the steps follow, wherever they start
        return super()._start(call, restart)

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        run = super()._begin(call, x_adv, rows)
        return dataclasses.replace(run, draws=_draws(call, rows)) if self._draws else run

    def _attack(self, call: Call) -> Tensor:
        call.planned *= self._passes
        return super()._attack(call)

    def _ahead(self, run: Run) -> Tensor:
        """Where the momentum alone would lead: x_adv + alpha * decay * momentum, against it for a target."""
        assert run.momentum is not None
        reach = self.decay * run.alpha
        step = as_column(reach, run.momentum) * run.momentum
        ahead = run.x_adv - step if self._descends else run.x_adv + step
        return ahead.to(run.x_adv.dtype)


class _Summed(TransferAttack):
    """Sums gradients of a sample at several points, which no factor of their own may then distort."""

    def _cotangent(self, logits: Tensor, goal: Tensor, source: Tensor | None = None) -> Tensor:
        return losses.cotangent(self.loss, logits, goal, targeted=self._descends, source=source)


class NIFGSM(TransferAttack):
    """NI-FGSM: `MIFGSM` whose gradient is taken at Nesterov's point x_adv + alpha * decay * momentum.

    As in the released code and torchattacks, and unlike the paper, momentum is made of gradients over their mean
    |entry| instead of their L1 norm, by which the point would hardly differ from x_adv. It may lie outside the box.

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
    """SI-NI-FGSM: `NIFGSM` that averages the gradients at m copies of the point, the i-th darker by a factor 2**-i.

    Copies are scaled towards `lo`, black, which is the paper's 0 in images in [0, 1]. The average needs the sizes of
    the gradients, so those of the cross-entropy are the plain ones, which vanish where it saturates.

    Args:
        model, eps, alpha, steps, decay: as `MIFGSM`'s.
        m: number of copies, at least 1; a step takes a gradient of each.
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
        light = self._ahead(run) - self.lo
        total = torch.zeros_like(run.momentum)
        for i in range(self.m):
            total += self.network.gradient(light * 2.0**-i + self.lo, cotangent) * 2.0**-i
        return total / self.m


class VMIFGSM(_Summed):
    """VMI-FGSM: `MIFGSM` whose gradient has the variance of the step before added to it: the mean of the gradients at N
    random neighbours of the iterate, less the iterate's own.

    Neighbours are uniform in the ball of radius beta * eps around x_adv, and not clamped to the box. Their noise is
    Philox with a key made of the seed and the neighbour's number: it follows the sample and differs between restarts,
    which therefore need no random start. As in `SINIFGSM`, the cross-entropy's gradients are the plain ones.

    Args:
        model, eps, alpha, steps, decay: as `MIFGSM`'s.
        N: number of neighbours, at least 1; a step takes N + 1 gradients.
        beta: radius of the neighbourhood over eps.
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
            total += self.network.gradient(uniform(run, run.x_adv, radius), cotangent)
        run.variance.copy_(total / self.N - own)
        return tuned

    def _point(self, run: Run) -> Tensor:
        """Where the gradient is taken that the variance is added to."""
        return run.x_adv


class VNIFGSM(VMIFGSM):
    """VNI-FGSM: `VMIFGSM` whose own gradient is taken at Nesterov's point, as `NIFGSM`'s; neighbours stay x_adv's.

    Args:
        model, eps, alpha, steps, decay, N, beta, **options: as `VMIFGSM`'s.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Wang and He 2021, arXiv:2103.15571, Section 3.2, and the code released with it.
    """

    def _point(self, run: Run) -> Tensor:
        return self._ahead(run)


def uniform(run: Run, x: Tensor, radius: Tensor) -> Tensor:
    """x [n, ...] with the next draw of each row added to it, uniform in (-radius, radius), [n]; moves `run.draws` on.

    The noise is that of `ops.random_start_linf` with key = seed + number * an odd constant, the number of the draw
    counted from 1 in each restart, and sample = sample number + candidate * another, modulo 2**32.
    """
    assert run.draws is not None
    run.draws[:, 3] += 1
    key, restart, _, number = run.draws[0].unbind()
    stream = torch.stack([key + number * _NEXT_KEY, restart, torch.zeros_like(key)])
    return _random_start_linf(
        x, radius, stream, run.draws[:, 2].contiguous(), -torch.inf, torch.inf
    )


def _draws(call: Call, rows: Tensor | None) -> Tensor:
    """int64 [n, 4]: key, restart, number of the sample and its candidate, draws so far; the others are common."""
    if rows is None:
        rows = torch.arange(call.rows, device=call.x.device)
    n = len(call.y)
    key, restart, first = call.stream.unbind()
    sample = call.index[rows % n] + (first + rows // n) * _NEXT_CANDIDATE & 0xFFFFFFFF
    zero = torch.zeros_like(sample)
    return torch.stack([key + zero, restart + zero, sample, zero], 1)
