"""APGD, PGD with momentum that finds its own step sizes, and APGDT, its version with several targets in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses
from iaat_fast.attacks.active_set import RunState, WorstCase, run_active, where_rows
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.options import GradientOptions, Targeting

# The registered ops, without the public functions' checks: a call checks its arguments itself.
_pgd_step_linf_ = torch.ops.iaat_fast.pgd_step_linf_.default
_project_linf = torch.ops.iaat_fast.project_linf.default

_MOMENTUM = 0.75  # alpha in the paper: the weight of the new step


class APGD(Attack):
    """Auto-PGD: steps with momentum whose size, per sample, is halved at checkpoints if the loss has stalled.

    The first steps have size 2 * eps. At a checkpoint a sample's step is halved, and it continues from its best iterate
    so far, if at most a share `rho` of the steps since the last checkpoint have raised the loss, or if the step was not
    halved at the last checkpoint and the best loss has not grown since.

    Four details follow the authors' released code, which produced the published numbers, instead of Algorithm 1: the
    periods between checkpoints are rounded down (the same checkpoints at 100 steps); a share of exactly `rho` counts as
    too few; the loss after the first step is compared with a loss of 0; the second condition does not apply at the
    first checkpoint. Two details differ from that code: the random start is uniform in the ball, not stretched to touch
    its boundary, and no gradient is taken at the last iterate.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C].
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N].
        steps: number of gradient steps; 0 takes none and gives the start, a random point or x itself, with a warning.
        loss: "ce", "dlr", "cw" or "kl", as `PGD`'s.
        rho: share of steps, in [0, 1], that must raise the loss for a step size to be kept.
        restarts, random_start, targeted, lo, hi, bn, precision, engine, seed, eot: as `PGD`'s.
        early_stop: a sample keeps the first iterate that fools the model and leaves the batch. False: it continues and
            keeps the last such iterate. Whether a sample is fooled does not depend on it. A sample that is never fooled
            keeps its iterate of largest loss.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", Algorithm 1, and the code released with it, AutoAttack.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        *,
        loss: str = "ce",
        rho: float = 0.75,
        random_start: bool = True,
        targeted: Targeting = False,
        early_stop: bool = True,
        **options: Unpack[GradientOptions],
    ) -> None:
        validate.number("rho", rho, high=1.0)
        super().__init__(
            model,
            eps,
            None,
            steps,
            loss=loss,
            random_start=random_start,
            targeted=targeted,
            early_stop=early_stop,
            **options,
        )
        self.rho = rho

    @property
    def _iterates(self) -> int:
        return self.steps + 1

    def _waits_for_device(self) -> bool:
        return super()._waits_for_device() or self.network.is_shadowed

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        periods = checkpoints(self.steps)

        def step(state: _State, number: int) -> None:
            if number:
                self._move(call, state, first=number == 1)
            logits = self._evaluate(call, state, gradient=number < self.steps)
            done = state.found
            self._keep_fooling(state, logits)
            self._update_best(call, state, logits, first=number == 0)
            if number in periods:
                self._halve(state, periods[number])
            if call.trace is not None:
                self._record(
                    call.trace.current,
                    logits,
                    self._goal(call, logits, state.rows),
                    state.y,
                    state.step,
                    rows=state.rows,
                    done=done if self.early_stop else None,
                    source=self._source(call, state.rows),
                )

        state = self._begin(call, x_adv, rows)
        shrinks = self.early_stop and not call.coupled
        state = run_active(
            state, step, self.steps + 1, shrinks=shrinks, compact_from=1, passes=call.passes
        )
        x_adv = where_rows(state.found, state.kept, state.best)
        if rows is None:
            return x_adv, state.found, state.best_loss
        fooled, loss = self._verdict(call, x_adv, state.y)
        return x_adv, self._ended(state.found, fooled), loss

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> _State:
        if rows is None:
            rows = torch.arange(call.rows, device=x_adv.device)
        n, eps = len(call.y), call.eps[rows]
        loss = eps.new_full((len(rows),), -torch.inf)
        return _State(
            found=torch.zeros_like(rows, dtype=torch.bool),
            kept=x_adv,
            rows=rows,
            x=call.x[rows % n],
            y=call.y[rows % n],
            mask=call.mask_of(rows),
            eps=eps,
            step=2 * eps,
            x_adv=x_adv,
            previous=x_adv,
            grad=torch.zeros_like(x_adv),
            best=x_adv,
            best_grad=torch.zeros_like(x_adv),
            loss=loss,
            best_loss=loss,
            checked_loss=loss,
            raised=torch.zeros_like(rows),
            halved=torch.ones_like(rows, dtype=torch.bool),
        )

    def _move(self, call: Call, state: _State, *, first: bool) -> None:
        """Lines 7 and 8 of Algorithm 1; the first step, line 2, has no momentum."""
        x, eps, box = state.x, state.eps, (self._lo, self._hi)
        stepped = state.x_adv.clone()
        descend = self._descends
        _pgd_step_linf_(stepped, state.grad, x, eps, state.step, *box, descend, call.stats)
        new = 1.0 if first else _MOMENTUM
        moved = stepped.sub_(state.x_adv).mul_(new).add_(state.x_adv)
        moved += (state.x_adv - state.previous).mul_(1 - new)
        projected = _project_linf(moved, x, eps, *box)
        state.previous, state.x_adv = state.x_adv, pin_(projected, x, state.mask)

    def _evaluate(self, call: Call, state: _State, *, gradient: bool) -> Tensor:
        """The logits [n, C] at the current iterates; with `gradient`, also sets state.grad."""
        if not gradient:
            with torch.no_grad():
                logits = self.network.logits(state.x_adv)
            return logits if logits.dtype is torch.float64 else logits.float()
        logits, state.grad = self.network.input_vjp(
            state.x_adv,
            lambda logits: self._cotangent(
                logits,
                self._goal(call, logits, state.rows),
                self._source(call, state.rows),
            ),
        )
        call.count(state.grad, passes=self.network.eot)
        return logits

    def _keep_fooling(self, state: _State, logits: Tensor) -> None:
        """Keep the iterates that fool the model: the first ones with early_stop, else the last ones."""
        fooled = self._fooled(logits, state.y)
        if self.early_stop:
            fooled &= ~state.found
        fooled = self._confirmed(state.x_adv, state.y, fooled)
        state.kept = where_rows(fooled, state.x_adv, state.kept)
        state.found = state.found | fooled

    def _update_best(self, call: Call, state: _State, logits: Tensor, *, first: bool) -> None:
        """Lines 3 to 5 and 9: update the best iterates, and the count of steps that have raised the loss."""
        targeted = self._descends
        loss = losses.value(
            self.loss,
            logits,
            self._goal(call, logits, state.rows),
            targeted=targeted,
            source=self._source(call, state.rows),
        )
        loss = (-loss if targeted else loss).to(state.best_loss.dtype)
        better = (loss > state.best_loss) | first
        state.best = where_rows(better, state.x_adv, state.best)
        state.best_grad = where_rows(better, state.grad, state.best_grad)
        state.best_loss = torch.where(better, loss, state.best_loss)
        if first:
            zero = losses.zero(self.loss)
            state.loss = torch.full_like(loss, -zero if targeted else zero)
            state.checked_loss = loss
        else:
            state.raised = state.raised + (loss > state.loss)
            state.loss = loss

    def _halve(self, state: _State, period: int) -> None:
        """Lines 10 to 14: at a checkpoint, `period` steps after the last one, halve the steps of stalled samples."""
        stalled = ~state.halved & (state.best_loss <= state.checked_loss)
        halve = (state.raised <= self.rho * period) | stalled
        state.step = torch.where(halve, state.step / 2, state.step)
        state.x_adv = where_rows(halve, state.best, state.x_adv)
        state.grad = where_rows(halve, state.best_grad, state.grad)
        state.halved, state.checked_loss = halve, state.best_loss
        state.raised = torch.zeros_like(state.raised)

    def _source(self, call: Call, rows: Tensor) -> Tensor | None:
        """int64 [n], the true classes, if the loss needs them in addition to the targets."""
        return None


class APGDT(APGD):
    """Targeted Auto-PGD: `APGD` towards each of the most likely wrong classes in turn.

    A sample is fooled when it gets any wrong class, and later targets leave it out. With its defaults it is the
    "apgd-t" of AutoAttack. With `targeted=True`, y is the one target, and a sample is fooled when it gets that.

    Args:
        model, eps, steps, rho, lo, hi, bn, precision, engine, early_stop, seed, eot: as `APGD`'s.
        loss: "dlr", which needs at least 4 classes; "ce" or "cw".
        n_target_classes: number of wrong classes to try, those with the largest logits at x first; fewer if the model
            has fewer, or masks some by logits of -infinity.
        restarts: runs per target.
        random_start: as `PGD`'s.
        targeted: False: the most likely wrong classes. Otherwise the one target that `PGD` describes.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Croce and Hein 2020, Equation 7 and Section 5.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        *,
        loss: str = "dlr",
        n_target_classes: int = 9,
        rho: float = 0.75,
        random_start: bool = True,
        targeted: Targeting = False,
        early_stop: bool = True,
        **options: Unpack[GradientOptions],
    ) -> None:
        validate.integer("n_target_classes", n_target_classes, 1)
        validate.choice("loss", loss, losses.CLASS_LOSSES)
        super().__init__(
            model,
            eps,
            steps,
            loss=loss,
            rho=rho,
            random_start=random_start,
            targeted=targeted,
            early_stop=early_stop,
            **options,
        )
        self.n_target_classes = n_target_classes

    @property
    def _runs(self) -> int:
        return self.restarts * (self.n_target_classes if self.targeted is False else 1)

    def _waits_for_device(self) -> bool:
        return True

    def _aim(self, call: Call) -> None:
        """`_attack` does."""

    def _attack(self, call: Call) -> Tensor:
        with torch.no_grad():
            logits = self.network.logits(call.x)
        call.y = call.safe_classes(call.y, logits.shape[1])
        self._look_at_masks(call, logits)
        targets = self._targets(call, logits, self.n_target_classes)
        call.planned *= targets.shape[1]
        worst = WorstCase(call)
        for k, target in enumerate(targets.unbind(1)):
            call.goal = target
            self._run_restarts(call, worst, range(k * self.restarts, (k + 1) * self.restarts))
        return worst.images

    @property
    def _descends(self) -> bool:
        return True

    def _source(self, call: Call, rows: Tensor) -> Tensor | None:
        return None if self.targeted is True else call.y[rows % len(call.y)]


@dataclasses.dataclass
class _State(RunState):
    """The n rows of a run; images are [n, ...], all else is [n].

    kept: for rows that are found, an iterate that fools the model.
    step: step size.
    previous, grad: the iterate before x_adv, and the gradient at x_adv.
    best, best_grad, best_loss: the iterate of largest loss, its gradient and its loss.
    loss: at x_adv; checked_loss: best_loss at the last checkpoint.
    raised: number of steps since then that have raised the loss; halved: whether the step was halved there.
    """

    results = ("found", "kept", "best")
    kept: Tensor
    rows: Tensor
    x: Tensor
    y: Tensor
    mask: Tensor | None
    eps: Tensor
    step: Tensor
    x_adv: Tensor
    previous: Tensor
    grad: Tensor
    best: Tensor
    best_grad: Tensor
    loss: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    raised: Tensor
    halved: Tensor


def checkpoints(steps: int) -> dict[int, int]:
    """{checkpoint: steps since the checkpoint before it}; at a checkpoint step sizes may be halved.

    The first period is 22 % of the steps; each later one is shorter by 3 % of the steps, down to 6 % (Croce and Hein
    2020, Section 3.2). These three numbers of steps are rounded down, but are at least 1.
    """
    period, shrink, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, step = {}, period
    while step <= steps:
        found[step] = period
        period = max(period - shrink, shortest)
        step += period
    return found
