"""FAB-T: small perturbations, found by moving back and forth across the decision boundary to a target class."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses
from iaat_fast.attacks.active_set import RunState, WorstCase, as_column, run_active, where_rows
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.objective import lead
from iaat_fast.attacks.options import RestartOptions, Targeting, whole_box
from iaat_fast.attacks.passes import among
from iaat_fast.ops import checks

# The registered ops, without the public functions' checks: a call checks its arguments itself.
_project_linf = torch.ops.iaat_fast.project_linf.default
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default

_TINY = 1e-8  # as in the released code: avoids 0/0 in the weight of two steps of size 0
# How far past the predicted crossing the final search tries, as a share of the remaining distance. With less, an image
# exactly on the boundary may no longer fool the model in a batch of another size or memory format.
_BEYOND = 0.1


class FABT(Attack):
    """The fast adaptive boundary attack, targeted: the nearest image that fools, over the most likely wrong classes.

    Each step linearises the boundary between the true and the target class at the iterate. It moves past the point of
    that hyperplane, within the box, that is nearest to the iterate, averaged with the one nearest to x. An iterate that
    gets any wrong class fools the model and is pulled back towards x. Unlike PGD, FAB looks for a small
    perturbation, not for the worst one in a ball, and the scale and saturation of the loss do not matter. Whether an
    image fools is always decided by the live model; a copy in another precision only gives gradients.

    With the defaults it is AutoAttack's "fab-t" with two additions: if the steps have only found an image outside the
    radius, a final search finds where the segment from x to it crosses the boundary, and an image that is still outside
    is clipped to the radius and classified again. A misclassified sample is not changed.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C].
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N]; None: the whole box without
            early stop, to find the smallest perturbation.
        steps: number of steps per target, each a gradient and a forward; 0 gives the start, with a warning.
        n_target_classes: number of wrong classes to try, those with the largest logits at x first; fewer if the model
            has fewer, or masks some by logits of -infinity.
        alpha_max: the largest weight of the point nearest to x, in [0, 1].
        eta: length of a step relative to the distance to the hyperplane, at least 1.
        beta: share of its perturbation that an iterate keeps when it is pulled back, in [0, 1].
        search_steps: forwards of the final search, after every target; each reduces the excess distance to a tenth
            where the boundary is flat. 0 as in AutoAttack's code.
        targeted: False: the most likely wrong classes. Otherwise the one target that `PGD` describes; with True an
            image fools if it gets the target y, and the boundary is that of y and the strongest other class.
        restarts: runs per target; the first starts at x, the others at random in the ball of half the radius.
        lo, hi, bn, precision, engine, seed: as `PGD`'s.
        early_stop: a sample keeps the first image within its radius that fools the model, and leaves the batch. False:
            it continues for the nearest such image over all targets. Whether it is fooled does not depend on it.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
        Algorithm 1 with the L-infinity norm; the targeted version: Croce and Hein 2020, "Reliable evaluation of
        adversarial robustness with an ensemble of diverse parameter-free attacks". The constants, and the projection
        if the hyperplane misses the box, follow the code released with the latter, AutoAttack.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor | None = 8 / 255,
        steps: int = 100,
        *,
        n_target_classes: int = 9,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        search_steps: int = 2,
        targeted: Targeting = False,
        early_stop: bool = True,
        **options: Unpack[RestartOptions],
    ) -> None:
        validate.integer("n_target_classes", n_target_classes, 1)
        validate.integer("search_steps", search_steps, 0)
        validate.number("alpha_max", alpha_max, high=1.0)
        validate.number("beta", beta, high=1.0)
        validate.number("eta", eta, 1.0)
        super().__init__(
            model,
            whole_box(options) if eps is None else eps,
            None,
            steps,
            targeted=targeted,
            early_stop=early_stop and eps is not None,
            **options,
        )
        self.n_target_classes, self.search_steps = n_target_classes, search_steps
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta

    def _attack(self, call: Call) -> Tensor:
        with torch.no_grad():
            logits = self.network.logits(call.x)
        checks.logit_values(logits)
        classes = logits.shape[1]
        call.y = call.safe_classes(call.y, classes)
        targets = self._targets(call, logits, self.n_target_classes)
        call.planned *= targets.shape[1]
        worst = WorstCase(call, drop=self.early_stop)
        for k, target in enumerate(targets.unbind(1)):
            call.goal = target
            self._run_restarts(call, worst, range(k * self.restarts, (k + 1) * self.restarts))
        return worst.images

    def _aim(self, call: Call) -> None:
        """`_attack` does."""

    def _start(self, call: Call, restart: int) -> Tensor:
        """A target's first restart starts at x, later ones at random in the ball of half the radius."""
        if call.start is not None:
            return super()._start(call, restart).clamp(self._lo, self._hi)
        if restart % self.restarts == 0:
            return call.per_candidate(call.x).clamp(self._lo, self._hi)
        call.begin_restart(restart)
        return _random_start_linf(call.x, call.eps / 2, call.stream, call.index, self._lo, self._hi)

    def _waits_for_device(self) -> bool:
        return True

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Attack._run_once`; the loss is minus the distance, so that `WorstCase` prefers near images."""
        assert rows is not None
        state = self._begin(call, x_adv, rows)
        move = functools.partial(self._move, call)
        shrinks = not call.coupled
        state = run_active(state, move, self.steps, shrinks=shrinks, passes=call.passes)
        self._search(call, state)
        return self._within_radius(call, state)

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor) -> _State:
        assert call.goal is not None
        n = len(call.y)
        x, y, eps = call.x[rows % n], call.y[rows % n], call.eps[rows]
        logits = self._live_logits(x)
        wrong = self._fooled(logits, y)
        distance = torch.where(wrong, 0.0, torch.full_like(eps, torch.inf))
        return _State(
            found=self._is_near(distance, eps),
            x=x,
            y=y,
            mask=call.mask_of(rows),
            target=call.goal[rows % n],
            eps=eps,
            x_adv=x_adv,
            best=x,
            distance=distance,
            margin=self._margin(logits, y),
            ahead=torch.full_like(eps, torch.nan),
        )

    def _live_logits(self, images: Tensor) -> Tensor:
        """The live model's logits, in float32 or wider; a half-precision copy has its boundary elsewhere."""
        with torch.no_grad():
            logits = self.network.logits(images)
        return logits if logits.dtype is torch.float64 else logits.float()

    def _margin(self, logits: Tensor, y: Tensor) -> Tensor:
        """What falls to 0 where an image begins to fool."""
        margin = losses.value("cw", logits, y, targeted=self.targeted is True)
        return margin if self.targeted is True else -margin

    def _is_near(self, distance: Tensor, eps: Tensor) -> Tensor:
        """Whether samples with a fooling image at this distance from x need no further step."""
        return distance <= (eps if self.early_stop else 0)

    def _move(self, call: Call, state: _State, number: int) -> None:
        """The loop body of Algorithm 1; `number`, the step's, is not used."""
        source = None if self.targeted is True else state.y
        logits, grad = self._lead_gradient(call, state.x_adv, state.target, source, state.mask)
        ahead = lead(logits, state.target, source)
        wide = state.distance.dtype
        w = grad.to(wide).nan_to_num(nan=0.0).flatten(1)
        x, x_adv = state.x.to(wide).flatten(1), state.x_adv.to(wide).flatten(1)
        gap = -torch.where(state.ahead.isnan(), ahead.to(wide), state.ahead)
        gap_x = gap + (x_adv - x).mul_(w).sum(1)
        step = step_to_hyperplane(x_adv, w, gap, self._lo, self._hi)
        step_x = step_to_hyperplane(x, w, gap_x, self._lo, self._hi)
        size, size_x = (d.abs().amax(1, keepdim=True).clamp(min=_TINY) for d in (step, step_x))
        alpha = (size / (size + size_x)).clamp(max=self.alpha_max)
        moved = step.mul_(self.eta).add_(x_adv).mul_(1 - alpha)
        moved += step_x.mul_(self.eta).add_(x).mul_(alpha)
        moved = moved.clamp_(self._lo, self._hi).view(state.x.shape).to(state.x.dtype)
        logits, fooled = self._keep_nearer(state, pin_(moved, state.x, state.mask))
        back = (moved - state.x).mul_(self.beta).add_(state.x)
        state.x_adv = where_rows(fooled, back, moved)
        ahead = lead(logits, state.target, source).to(wide)
        state.ahead = torch.where(fooled, torch.nan, ahead)

    def _keep_nearer(self, state: _State, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keep images that fool and are nearer to x than the best so far; returns all logits, and which images fool."""
        logits = self._live_logits(images)
        fooled = self._fooled(logits, state.y)
        wide = state.distance.dtype
        distance = (images.to(wide) - state.x.to(wide)).flatten(1).abs().amax(1)
        nearer = fooled & (distance < state.distance) & ~state.found
        state.best = where_rows(nearer, images, state.best)
        state.distance = torch.where(nearer, distance, state.distance)
        state.found = self._is_near(state.distance, state.eps)
        return logits, fooled

    def _search(self, call: Call, state: _State) -> None:
        """Find where the segment from x to the best image crosses the boundary, by the bracketed secant method."""
        rows = (state.distance.isfinite() & ~state.found).nonzero()[:, 0]
        if not (self.search_steps and len(rows)):
            return
        some = state.only(rows)
        with among(call.passes, rows):
            self._bisect(some)
        state.put(rows, some)

    def _bisect(self, some: _State) -> None:
        way = some.best - some.x
        inside, above = torch.zeros_like(some.distance), some.margin
        outside, below = torch.ones_like(inside), self._margin(self._live_logits(some.best), some.y)
        for _ in range(self.search_steps):
            share = (above / (above - below)).nan_to_num(nan=0.5).clamp(0, 1)
            at = inside + (outside - inside) * (share + (1 - share) * _BEYOND)
            tried = (some.x + as_column(at, way).to(way.dtype) * way).clamp(self._lo, self._hi)
            logits, fooled = self._keep_nearer(some, pin_(tried, some.x, some.mask))
            margin = self._margin(logits, some.y)
            inside, above = torch.where(fooled, inside, at), torch.where(fooled, above, margin)
            outside, below = torch.where(fooled, at, outside), torch.where(fooled, margin, below)

    def _within_radius(self, call: Call, state: _State) -> tuple[Tensor, Tensor, Tensor]:
        """The images, clipped to the radius; whether they fool; and minus their distances from x before clipping."""
        near = state.distance <= state.eps
        best = torch.where(as_column(state.distance.isfinite(), state.x), state.best, state.x_adv)
        rows = (~near).nonzero()[:, 0]
        if len(rows):
            clipped = _project_linf(best[rows], state.x[rows], state.eps[rows], self._lo, self._hi)
            pin_(clipped, state.x[rows], None if state.mask is None else state.mask[rows])
            best[rows] = clipped
            with among(call.passes, rows):
                near[rows] = self._fooled(self._live_logits(clipped), state.y[rows])
        return best, near, -state.distance.clamp(max=torch.finfo(state.distance.dtype).max)


@dataclasses.dataclass
class _State(RunState):
    """The n rows of a run towards one target.

    best: the nearest image that fools; x if there is none yet.
    distance: from x to best in the L-infinity norm; infinite if there is none yet.
    margin: at x, how far the true class is ahead of all others; with targeted=True, how far the target is behind.
    ahead: at x_adv, how far the target is ahead of the true class (with targeted=True, of all others) by the live
        model; NaN if not computed.
    """

    results = ("found", "x_adv", "best", "distance")
    x: Tensor
    y: Tensor
    mask: Tensor | None
    target: Tensor
    eps: Tensor
    x_adv: Tensor
    best: Tensor
    distance: Tensor
    margin: Tensor
    ahead: Tensor


def step_to_hyperplane(x: Tensor, w: Tensor, gap: Tensor, lo: float, hi: float) -> Tensor:
    """The smallest step d, in the L-infinity norm, with <w, d> = gap and x + d in [lo, hi].

    If the hyperplane misses the box, d goes as far towards it as the box allows.

    In a step of size t every pixel moves by min(t, its distance from the bound it moves towards), so |<w, d>| is a
    concave, piecewise linear function of t. Newton's method from t = 0 approaches the solution from below and takes at
    most as many steps as there are pieces, in practice about five passes over the images; the paper's algorithm sorts
    them instead.

    Args:
        x: points [N, D] in the box, float32 or float64.
        w: normals [N, D].
        gap: [N], b - <w, x> for the hyperplane <w, .> = b.

    Returns:
        d, [N, D]; 0 where w is 0.

    Source: the problem: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", the projection onto a hyperplane and the box; the algorithm: derived here.
    """
    way = w * torch.where(gap < 0, -1.0, 1.0).to(w.dtype).unsqueeze(1)
    room = torch.where(way > 0, hi - x, x - lo).clamp_(min=0)
    weight, missing = w.abs(), gap.abs()
    size = torch.zeros_like(gap)
    moving_before = torch.full_like(gap, -1)
    # Ones and zeros of the images' dtype: products and sums of booleans are slow. Their sum, at most D, is exact.
    moving, moved = torch.empty_like(room), torch.empty_like(room)
    while True:
        torch.gt(room, size.unsqueeze(1), out=moving)
        count = moving.sum(1)
        if torch.equal(count, moving_before):
            break  # no more pieces were crossed: the last step was exact
        reached = torch.minimum(room, size.unsqueeze(1), out=moved).mul_(weight).sum(1)
        step = (missing - reached) / moving.mul_(weight).sum(1)
        size = torch.where(step > 0, size + step, size)
        moving_before = count
    return torch.minimum(room, size.unsqueeze(1)) * way.sign()
