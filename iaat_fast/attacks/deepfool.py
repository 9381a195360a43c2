"""DeepFool in the L-infinity norm: repeated steps to the nearest decision boundary of the linearised network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks.active_set import RunState, as_column, run_active
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.options import SharedOptions, whole_box
from iaat_fast.attacks.targets import likely_targets

# The registered op, without the public function's checks: a call checks its arguments itself.
_project_linf = torch.ops.iaat_fast.project_linf.default

# Added to every distance (logits over L1 norm of the gradient), so that a step never becomes 0 at the boundary, and to
# every norm. Both are from the authors' code and foolbox.
_PAST, _TINY = 1e-4, 1e-8


class DeepFool(Attack):
    """DeepFool: a small perturbation that fools, found by stepping to the nearest linearised decision boundary.

    Each sample stops at its first iterate that fools the model, and leaves the batch; a misclassified sample is not
    changed. Unlike PGD, DeepFool looks for a small perturbation, not for the worst one in a ball: the radius only clips
    the iterates.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C].
        eps: radius of the ball that iterates are clipped to, a float or a tensor [N]; None, the whole box.
        steps: maximum number of steps; 0 gives x itself, with a warning.
        overshoot: how far a step goes past the boundary, relative to its length (eta in the paper).
        candidates: number of classes considered, at least 2: the true one, and the others with the largest logits at x.
            A step takes candidates - 1 gradients.
        lo, hi, bn, precision, engine: as `PGD`'s.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural
        networks", Algorithm 2 with the L-infinity norm (Section 3.3).
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor | None = None,
        steps: int = 50,
        *,
        overshoot: float = 0.02,
        candidates: int = 10,
        **options: Unpack[SharedOptions],
    ) -> None:
        validate.number("overshoot", overshoot)
        validate.integer("candidates", candidates, 2)
        eps = whole_box(options) if eps is None else eps
        super().__init__(model, eps, None, steps, random_start=False, **options)
        self.overshoot, self.candidates = overshoot, candidates

    def _waits_for_device(self) -> bool:
        return True

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Attack._run_once`; rows is None, as there are no restarts."""
        assert rows is None

        def step(state: _State, number: int) -> None:
            if number:
                self._move(state, *self._nearest(call, state))
            if number < self.steps:
                self._evaluate(call, state)

        state = self._begin(call, x_adv)
        shrinks = not call.coupled
        state = run_active(
            state, step, self.steps + 1, shrinks=shrinks, compact_from=1, passes=call.passes
        )
        return state.x_adv, state.found, state.y

    def _begin(self, call: Call, x_adv: Tensor) -> _State:
        with torch.no_grad():
            logits = self.network.logits(call.per_candidate(call.x))
        classes = logits.shape[1]
        call.y = call.safe_classes(call.y, classes)
        x, y = call.per_candidate(call.x), call.per_candidate(call.y)
        others = likely_targets(logits, y, self.candidates - 1)
        call.planned *= others.shape[1]
        return _State(
            found=torch.zeros_like(y, dtype=torch.bool),
            x=x,
            y=y,
            mask=None if call.mask is None else call.per_candidate(call.mask),
            eps=call.eps,
            x_adv=x_adv,
            delta=torch.zeros_like(x_adv),
            others=others,
            logits=logits,
            grad=torch.zeros_like(x_adv),
        )

    def _evaluate(self, call: Call, state: _State) -> None:
        """Set the logits at the iterates, the gradient for the first other class, and which rows fool the model."""
        state.logits, state.grad = self._lead_gradient(
            call, state.x_adv, state.others[:, 0], state.y, state.mask
        )
        fooled = self._fooled(state.logits, state.y) & ~state.found
        state.found = state.found | self._confirmed(state.x_adv, state.y, fooled)

    def _nearest(self, call: Call, state: _State) -> tuple[Tensor, Tensor]:
        """Lines 5 to 9: the distance [n] to the nearest boundary, and the gradient [n, ...] for its class."""
        grad = state.grad
        nearest = self._distance(state, state.logits, grad, 0)
        for k in range(1, state.others.shape[1]):
            logits, candidate = self._lead_gradient(
                call, state.x_adv, state.others[:, k], state.y, state.mask
            )
            distance = self._distance(state, logits, candidate, k)
            nearer = distance < nearest
            nearest = torch.where(nearer, distance, nearest)
            grad = torch.where(as_column(nearer, grad), candidate, grad)
        return nearest, grad

    def _distance(self, state: _State, logits: Tensor, grad: Tensor, k: int) -> Tensor:
        """[n], the L-infinity distance to the linearised boundary towards class state.others[:, k]."""
        behind = logits.gather(1, state.y.view(-1, 1)) - logits.gather(
            1, state.others[:, k : k + 1]
        )
        return behind[:, 0].abs() / (grad.flatten(1).to(logits.dtype).abs().sum(1) + _TINY)

    def _move(self, state: _State, distance: Tensor, grad: Tensor) -> None:
        """Lines 10 and 11, with the overshoot in every step as in the authors' code; found rows do not move."""
        length = as_column((1 + self.overshoot) * (distance + _PAST), grad).to(grad.dtype)
        radius = as_column(state.eps, grad).to(grad.dtype)
        delta = (state.delta + length * grad.sign()).clamp(-radius, radius)
        moved = _project_linf(state.x + delta, state.x, state.eps, self._lo, self._hi)
        pin_(moved, state.x, state.mask)
        stays = as_column(state.found, grad)
        state.delta = torch.where(stays, state.delta, delta)
        state.x_adv = torch.where(stays, state.x_adv, moved)


@dataclasses.dataclass
class _State(RunState):
    """The n rows of a run; images are [n, ...].

    delta: perturbation before the projection into the box.
    others: int64 [n, T], the wrong classes that are considered.
    logits, grad: logits [n, C] at x_adv, and the gradient of (logit of others[:, 0] - logit of y).
    """

    results = ("found", "x_adv")
    x: Tensor
    y: Tensor
    mask: Tensor | None
    eps: Tensor
    x_adv: Tensor
    delta: Tensor
    others: Tensor
    logits: Tensor
    grad: Tensor
