"""Square Attack: a random search that needs no gradients."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses
from iaat_fast.attacks.active_set import RunState, as_column, run_active
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.options import RestartOptions, Targeting
from iaat_fast.ops import checks, primitives

# The registered op, without the public function's checks: a call checks its arguments itself.
_project_linf = torch.ops.iaat_fast.project_linf.default

# Queries (of 10,000) after which the share of pixels in a square is halved, as in the released code.
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10_000

# First Philox counter block of the queries' draws; the stripes use blocks below, random targets one above.
_QUERIES = 2**28
# Number of queries whose draws are made at once: Philox takes about 150 small operations for any number of words.
_AHEAD = 64


class Square(Attack):
    """Square Attack: squares of random place and sign, kept if they raise the margin loss.

    It uses the logits only, so masked gradients do not mislead it. It starts from vertical stripes of ±eps; each query
    sets one square of the best image so far, in each channel, to x + eps or to x - eps. A sample that is fooled leaves
    the batch; one that is never fooled keeps its image of largest loss.

    The draws are words of Philox with key = seed and counter = (block, sample number, candidate, restart), and every
    query has its own blocks: a sample's squares do not depend on the batch, nor on which samples have left it. `stats`
    stays empty, as there are no gradients. With a mask, squares fall anywhere; outside they change nothing.

    As in the paper and unlike AutoAttack's code, every sample draws its own squares, and a square may touch the last
    row and column. As in AutoAttack's code and unlike the paper's, a square that changes nothing is not drawn again.

    Args:
        model: maps images [N, C, H, W] in [lo, hi] to logits [N, classes].
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N].
        n_queries: number of squares tried, one forward each; 0 gives the stripes, with a warning.
        p_init: share of an image's pixels in the first squares, in (0, 1]; halved after 10, 50, 200, 500, 1000, 2000,
            4000, 6000 and 8000 queries.
        rescale_schedule: rescale these numbers from 10,000 queries to `n_queries`. AutoAttack does not.
        restarts, targeted, lo, hi, bn, precision, engine, seed: as `PGD`'s.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020, "Square Attack: a query-efficient black-box adversarial
        attack via random search", Algorithms 1 and 2; the schedule: the code released with it.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        n_queries: int = 5000,
        *,
        p_init: float = 0.8,
        rescale_schedule: bool = False,
        targeted: Targeting = False,
        **options: Unpack[RestartOptions],
    ) -> None:
        validate.integer("n_queries", n_queries, 0)
        validate.number("p_init", p_init, high=1.0, above=True)
        super().__init__(
            model,
            eps,
            None,
            n_queries,
            targeted=targeted,
            early_stop=True,
            loss="cw",
            **options,
        )
        self.p_init, self.rescale_schedule = p_init, rescale_schedule

    @property
    def n_queries(self) -> int:
        return self.steps

    def side(self, query: int, height: int, width: int) -> int:
        """The side, in pixels, of the square of this query, counted from 1."""
        done = query - 1
        if self.rescale_schedule:
            done = done * _SCHEDULE // self.steps
        share = self.p_init / 2 ** bisect.bisect_left(_HALVED, done)
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)

    def _attack(self, call: Call) -> Tensor:
        if call.x.dim() != 4:
            raise ValueError(f"x: shape {tuple(call.x.shape)}, expected [N, C, H, W]")
        call.planned = 0
        return super()._attack(call)

    def _start(self, call: Call, restart: int) -> Tensor:
        """Vertical stripes, or the given start images projected into the ball."""
        call.begin_restart(restart)
        if call.start is not None:
            start = super()._start(call, restart)
            return _project_linf(start, call.x, call.eps, self.lo, self.hi)
        channels, _, width = call.x.shape[1:]
        rows = torch.arange(call.rows, device=call.x.device)
        blocks = torch.arange(-(-channels * width // 128), device=call.x.device)
        up = _bits(_words(call, rows, blocks).flatten(1), channels * width)
        high, low = self._corners(call)
        return torch.where(up.view(-1, channels, 1, width), high, low)

    def _corners(self, call: Call) -> tuple[Tensor, Tensor]:
        """x + eps and x - eps clamped to the box, [K*N, C, H, W] each: the only values that pixels are set to."""
        x = call.per_candidate(call.x)
        high = _project_linf(torch.full_like(x, self.hi), call.x, call.eps, self.lo, self.hi)
        low = _project_linf(torch.full_like(x, self.lo), call.x, call.eps, self.lo, self.hi)
        return pin_(high, call.x, call.mask), pin_(low, call.x, call.mask)

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert rows is not None

        def step(state: _State, query: int) -> None:
            tried = self._proposal(call, state, query) if query else state.best
            self._keep_better(call, state, tried, first=query == 0)

        state = self._begin(call, x_adv, rows)
        shrinks = not call.coupled
        state = run_active(
            state, step, self.steps + 1, shrinks=shrinks, compact_from=1, passes=call.passes
        )
        return state.best, state.found, state.loss

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor) -> _State:
        high, low = self._corners(call)
        return _State(
            found=torch.zeros_like(rows, dtype=torch.bool),
            rows=rows,
            y=call.y[rows % len(call.y)],
            high=high[rows],
            low=low[rows],
            best=x_adv,
            loss=call.eps.new_full((len(rows),), -torch.inf),
            words=rows.new_empty((len(rows), 0, 0)),
        )

    def _proposal(self, call: Call, state: _State, query: int) -> Tensor:
        """The best images with one more square each (Algorithm 2).

        Pixels are set to x ± eps, which is what the paper's change by ±2 eps and projection amount to.
        """
        channels, height, width = state.best.shape[1:]
        ahead = (query - 1) % _AHEAD
        if ahead == 0:
            count = min(_AHEAD, self.steps + 1 - query)
            per_query = -(-(2 + -(-channels // 32)) // 4)
            first = _QUERIES + (query - 1) * per_query
            blocks = first + torch.arange(count * per_query, device=state.rows.device)
            state.words = _words(call, state.rows, blocks).view(-1, count, 4 * per_query)
        words, side = state.words[:, ahead], self.side(query, height, width)
        inside = _range(words[:, 0], side, height).unsqueeze(2) & _range(
            words[:, 1], side, width
        ).unsqueeze(1)
        up = _bits(words[:, 2:], channels).view(-1, channels, 1, 1)
        return torch.where(inside.unsqueeze(1), torch.where(up, state.high, state.low), state.best)

    def _keep_better(self, call: Call, state: _State, tried: Tensor, *, first: bool) -> None:
        """The second half of Algorithm 1's loop: keep images that raise the loss; found rows do not change."""
        logits = self.network.predict(tried)
        if first:
            checks.logit_values(logits)
        goal = self._goal(call, logits, state.rows)
        targeted = self._descends
        loss = losses.value(self.loss, logits, goal, targeted=targeted)
        loss = (-loss if targeted else loss).to(state.loss.dtype)
        searching = ~state.found
        fooled = self._confirmed(tried, state.y, self._fooled(logits, state.y) & searching)
        better = (loss > state.loss) & searching | fooled
        state.best = torch.where(as_column(better, tried), tried, state.best)
        state.loss = torch.where(better, loss, state.loss)
        state.found = state.found | fooled


@dataclasses.dataclass
class _State(RunState):
    """The n rows of a run.

    high, low: x + eps and x - eps, clamped to the box.
    loss: of the best images, [n].
    words: int64 [n, queries, words], random words drawn for the next queries.
    """

    results = ("found", "best", "loss")
    rows: Tensor
    y: Tensor
    high: Tensor
    low: Tensor
    best: Tensor
    loss: Tensor
    words: Tensor


def _words(call: Call, rows: Tensor, blocks: Tensor) -> Tensor:
    """Philox's words for rows [n] of a call and counter blocks [b] in the current restart: int64 [n, b, 4]."""
    key, restart, first_candidate = call.stream.unbind()
    n = len(call.y)
    sample, candidate = call.index[rows % n], first_candidate + rows // n
    words = primitives.philox(
        key, blocks.expand(len(rows), -1), sample.view(-1, 1), candidate.view(-1, 1), restart
    )
    return torch.stack(words, dim=2)


def _bits(words: Tensor, count: int) -> Tensor:
    """The first bits of words [n, w] of 32 bits each: bool [n, count]."""
    bit = torch.arange(count, device=words.device)
    return (words[:, bit // 32] >> bit % 32) & 1 == 1


def _range(word: Tensor, side: int, size: int) -> Tensor:
    """Which of `size` positions lie in a random range of length `side`, chosen by word [n]: bool [n, size]."""
    begin = (word * (size - side + 1) >> 32).view(-1, 1)
    at = torch.arange(size, device=word.device)
    return (at >= begin) & (at < begin + side)
