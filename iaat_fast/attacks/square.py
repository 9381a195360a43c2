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
from iaat_fast.attacks.active_set import RunState, run_active
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.options import RestartOptions, Targeting
from iaat_fast.ops import checks, primitives
from iaat_fast.ops.layout import memory_format

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

    @property
    def _iterates(self) -> int:
        return self.steps + 1

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
            return _project_linf(start, call.x, call.eps, self._lo, self._hi)
        channels, _, width = call.x.shape[1:]
        rows = torch.arange(call.rows, device=call.x.device)
        blocks = torch.arange(-(-channels * width // 128), device=call.x.device)
        up = _bits(_words(call, rows, blocks).flatten(1), channels * width)
        high, low = self._corners(call)
        return torch.where(up.view(-1, channels, 1, width), high, low)

    def _corners(self, call: Call) -> tuple[Tensor, Tensor]:
        """x + eps and x - eps clamped to the box, [K*N, C, H, W] each: the only values that pixels are set to."""
        x = call.per_candidate(call.x)
        high = _project_linf(torch.full_like(x, self._hi), call.x, call.eps, self._lo, self._hi)
        low = _project_linf(torch.full_like(x, self._lo), call.x, call.eps, self._lo, self._hi)
        return pin_(high, call.x, call.mask), pin_(low, call.x, call.mask)

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert rows is not None

        canvas = _Canvas(call.x)

        def step(state: _State, query: int) -> None:
            done = state.found
            if query:
                self._try_squares(call, state, canvas, query)
            else:
                logits = self.network.predict(canvas.images(state.best))
                checks.logit_values(logits)
                self._better(call, state, canvas, logits)
            if call.trace is not None:
                loss = -state.loss if self._descends else state.loss
                side = torch.full_like(loss, self.side(query + 1, canvas.height, canvas.width))
                call.trace.current.write(state.rows, loss, state.found, side, done)

        state = self._begin(call, canvas, x_adv, rows)
        shrinks = not call.coupled
        state = run_active(
            state, step, self.steps + 1, shrinks=shrinks, compact_from=1, passes=call.passes
        )
        return canvas.images(state.best), state.found, state.loss

    def _begin(self, call: Call, canvas: _Canvas, x_adv: Tensor, rows: Tensor) -> _State:
        high, low = (canvas.pixels(corner[rows]) for corner in self._corners(call))
        return _State(
            found=torch.zeros_like(rows, dtype=torch.bool),
            rows=rows,
            y=call.y[rows % len(call.y)],
            corners=torch.cat([high, low], 1),
            best=canvas.pixels(x_adv).clone(),
            loss=call.eps.new_full((len(rows),), -torch.inf),
            place=rows.new_empty((len(rows), 0)),
            corner=rows.new_empty((len(rows), 0, 0)),
        )

    def _try_squares(self, call: Call, state: _State, canvas: _Canvas, query: int) -> None:
        """One query: a square more in each of the best images (Algorithm 2), taken back where it does not help.

        Pixels are set to x ± eps, which is what the paper's change by ±2 eps and projection amount to. The squares are
        drawn into the best images themselves: they hold few of the pixels, and all others would only be copied.
        """
        ahead = (query - 1) % _AHEAD
        if ahead == 0:
            self._draw_ahead(call, state, canvas, query)
        n = len(state.best)
        square = canvas.square(self.side(query, canvas.height, canvas.width))
        inside = state.place[:, ahead].view(-1, 1, 1) + square
        new = state.corners.gather(1, (inside + state.corner[:, ahead].unsqueeze(2)).view(n, -1))
        inside = inside.view(n, -1)
        old = state.best.gather(1, inside)
        state.best.scatter_(1, inside, new)
        better = self._better(call, state, canvas, self.network.predict(canvas.images(state.best)))
        state.best.scatter_(1, inside, torch.where(better.unsqueeze(1), new, old))

    def _draw_ahead(self, call: Call, state: _State, canvas: _Canvas, query: int) -> None:
        """Draw the squares of this query and of those after it."""
        count = min(_AHEAD, self.steps + 1 - query)
        channels, height, width = canvas.channels, canvas.height, canvas.width
        per_query = -(-(2 + -(-channels // 32)) // 4)
        first = _QUERIES + (query - 1) * per_query
        blocks = first + torch.arange(count * per_query, device=state.rows.device)
        words = _words(call, state.rows, blocks).view(-1, count, 4 * per_query)
        sides = [self.side(query + ahead, height, width) for ahead in range(count)]
        side = torch.tensor(sides, device=words.device)
        top = words[:, :, 0] * (height - side + 1) >> 32
        left = words[:, :, 1] * (width - side + 1) >> 32
        state.place = canvas.offset(top, left)
        state.corner = (~_bits(words[:, :, 2:], channels)).long() * canvas.size

    def _better(self, call: Call, state: _State, canvas: _Canvas, logits: Tensor) -> Tensor:
        """bool [n], whose loss the images in `best` raise (Algorithm 1); found rows do not change."""
        goal = self._goal(call, logits, state.rows)
        targeted = self._descends
        loss = losses.value(self.loss, logits, goal, targeted=targeted)
        loss = (-loss if targeted else loss).to(state.loss.dtype)
        searching = ~state.found
        fooled = self._fooled(logits, state.y) & searching
        fooled = self._confirmed(canvas.images(state.best), state.y, fooled)
        better = (loss > state.loss) & searching | fooled
        state.loss = torch.where(better, loss, state.loss)
        state.found = state.found | fooled
        return better


@dataclasses.dataclass
class _State(RunState):
    """The n rows of a run; images as `_Canvas` stores them.

    corners: x + eps and then x - eps, clamped to the box, [n, 2 C H W].
    best: [n, C H W], the one field that steps write into.
    loss: of the best images, [n].
    place: int64 [n, queries], where the first pixels of the next squares lie.
    corner: int64 [n, queries, C], which of the corners they are set to, as an offset into `corners`.
    """

    results = ("found", "best", "loss")
    rows: Tensor
    y: Tensor
    corners: Tensor
    best: Tensor
    loss: Tensor
    place: Tensor
    corner: Tensor


class _Canvas:
    """Images [n, C, H, W] as rows of pixels [n, C H W] in the order of their memory, and the squares in them.

    Args:
        x: images, whose shape without n and memory format the canvas has.
    """

    def __init__(self, x: Tensor) -> None:
        _, self.channels, self.height, self.width = x.shape
        self.size = self.channels * self.height * self.width
        self._layout, self._device = memory_format(x), x.device
        self._squares: dict[int, Tensor] = {}

    def pixels(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self._layout)
        if self._layout is torch.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.reshape(-1, self.size)

    def images(self, pixels: Tensor) -> Tensor:
        if self._layout is torch.channels_last:
            images = pixels.view(-1, self.height, self.width, self.channels)
            return images.permute(0, 3, 1, 2)
        return pixels.view(-1, self.channels, self.height, self.width)

    def offset(self, row: Tensor, column: Tensor) -> Tensor:
        """int64, the place of a pixel's first channel."""
        per_pixel = self.channels if self._layout is torch.channels_last else 1
        return (row * self.width + column) * per_pixel

    def square(self, side: int) -> Tensor:
        """int64 [C, side^2], the places of the pixels of a square relative to its first."""
        if side not in self._squares:
            at = torch.arange(side, device=self._device)
            inside = self.offset(at.unsqueeze(1), at).flatten()
            apart = 1 if self._layout is torch.channels_last else self.height * self.width
            channel = torch.arange(self.channels, device=self._device) * apart
            self._squares[side] = channel.unsqueeze(1) + inside
        return self._squares[side]


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
    """The first bits of words [..., w] of 32 bits each: bool [..., count]."""
    bit = torch.arange(count, device=words.device)
    return (words[..., bit // 32] >> bit % 32) & 1 == 1
