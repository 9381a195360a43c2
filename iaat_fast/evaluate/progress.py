"""How far an evaluation is: gradient passes taken and still expected, and what is shown of them while it runs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, TextIO

from torch import Tensor

from iaat_fast.attacks import AttackStats

_COUNTS = ("total", "zero", "nan", "gradients")


@dataclass
class Tally:
    """What one attack has taken: its gradients, of `AttackStats`, and seconds."""

    gradients: AttackStats
    seconds: float = 0.0

    def state(self) -> list[float]:
        """Plain numbers, for `load`."""
        return [*(getattr(self.gradients, name) for name in _COUNTS), self.seconds]

    def load(self, state: Sequence[float]) -> None:
        """Add what `state` gave."""
        *counts, seconds = state
        taken = AttackStats(**dict(zip(_COUNTS, map(int, counts), strict=True)))
        self.gradients, self.seconds = self.gradients.plus(taken), float(seconds)


def charge(
    tallies: Sequence[Tally], rows: Sequence[int], stats: AttackStats, seconds: float
) -> None:
    """Split gradients and seconds among attacks by the rows of the batch that each of them had."""
    parts = {name: shares(getattr(stats, name), rows) for name in _COUNTS}
    for number, tally in enumerate(tallies):
        own = AttackStats(**{name: part[number] for name, part in parts.items()})
        tally.gradients = tally.gradients.plus(own)
        tally.seconds += seconds * rows[number] / sum(rows)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split into whole numbers by these weights, which sum to it; exactly where the weights divide it."""
    ends, passed, everything = [], 0, sum(weights)
    for weight in weights:
        passed += weight
        ends.append(total * passed // everything)
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class WorkEstimator(NamedTuple):
    """What finished work took of what was planned for it, in gradient passes of one image: so will work to come."""

    taken: int = 0
    planned: int = 0

    def plus(self, taken: int, planned: int) -> WorkEstimator:
        """With this work, which is finished too."""
        return WorkEstimator(self.taken + taken, self.planned + planned)

    def expected(self, planned: float) -> float:
        """Passes that planned ones are expected to come to: all of them, as long as nothing is finished."""
        return planned * self.taken / self.planned if self.planned else planned


def expected_passes(
    budgets: Sequence[tuple[int, int]],
    *,
    restart: int,
    before: Tensor,
    standing: Tensor,
    done: Tensor,
    left: int,
    estimator: WorkEstimator,
) -> float:
    """Gradient passes, one image each, that attacks sharing their restarts are still expected to take.

    In the current restart: `left`, scaled by the estimator. In later restarts a sample counts with the steps of the
    longest attack that it still withstands. For samples that are done with the current restart that is known; of the
    others, the same share is expected to withstand it as of those that are done (all, as long as none is done). A
    sample that withstood one restart is taken to withstand the others, so the estimate is a little high.

    Args:
        budgets: (steps, restarts) of each attack.
        restart: number of the current restart.
        before: bool [M, N], which attacks each sample had withstood when the restart began.
        standing: bool [M, N], which it withstands so far.
        done: bool [N], which samples are done with the restart.
        left: steps that the others have left in it.
        estimator: of the samples that are done.
    """
    passes = estimator.expected(left)
    depths = sorted({steps for steps, _ in budgets})
    for later in range(restart + 1, max(restarts for _, restarts in budgets)):
        shallower = 0
        for depth in depths:
            rows = [
                m
                for m, (steps, restarts) in enumerate(budgets)
                if steps >= depth and restarts > later
            ]
            if rows:
                stood, stand = before[rows].any(0), standing[rows].any(0)
                known = int((stand & done).sum())
                seen = int((stood & done).sum())
                rate = known / seen if seen else 1.0
                count = known + rate * int((stand & ~done).sum())
                passes += count * (depth - shallower)
            shallower = depth
    return passes


class Rates:
    """Estimators of attacks yet to come, from those that are finished: of first restarts, and of later ones."""

    def __init__(self) -> None:
        self._first, self._later = WorkEstimator(), WorkEstimator()

    def add(self, restart: int, taken: int, planned: int) -> None:
        """A restart that is finished: the passes it took, and samples times steps."""
        if restart == 0:
            self._first = self._first.plus(taken, planned)
        else:
            self._later = self._later.plus(taken, planned)

    def expected(self, upcoming: Sequence[Sequence[int]]) -> float:
        """Gradient passes of attacks to come, given the planned ones of each restart."""
        return sum(
            (self._later if restart else self._first).expected(planned)
            for attack in upcoming
            for restart, planned in enumerate(attack)
        )


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line, by default on standard error: above the bar, where one is shown."""
    from tqdm import tqdm  # belongs to an extra: attacks are measured without it

    tqdm.write(text, file=file or sys.stderr)
    (file or sys.stderr).flush()


class Progress:
    """Passes done, out of those still expected, and the time to go at the rate so far.

        with Progress() as tell:
            evaluate_suite(..., tell=tell)

    The end moves with what is learnt: samples that fall early leave fewer passes to do. Parts count
    for themselves (gradients of images; with corruptions, images), so "to go" is of the part named.
    """

    def __init__(self, *, every: float = 60.0, quiet: bool = False) -> None:
        """`every`: seconds between two lines, where standard error is no terminal. `quiet`: show nothing."""
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._every = every

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self._started = self._said = time.monotonic()
        self._first, self._done = 0.0, math.inf
        self._bar = tqdm(
            unit=" passes", unit_scale=True, dynamic_ncols=True, disable=not self._live
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, name: str, done: float, remaining: float) -> None:
        """What is measured, passes done and passes expected yet; those of an earlier process are among the done."""
        if self._live:
            self._bar.set_description(name, refresh=False)
            self._bar.total = done + remaining
            self._bar.update(done - self._bar.n)
            return
        if self._quiet:
            return
        now = time.monotonic()
        if done < self._done:  # the first call of a part: nothing before it was timed
            self._first, self._started = done, now
        self._done = done
        if now - self._said < self._every:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        to_go = self._bar.format_interval(remaining / rate) if rate > 0 else "?"
        whole = done + remaining
        print(
            f"{name}: {self._bar.format_sizeof(done)} of {self._bar.format_sizeof(whole)} passes "
            f"({done / whole:.0%}), {to_go} to go",
            file=sys.stderr,
            flush=True,
        )
