"""The progress of an evaluation: gradient passes taken and still expected, and showing them while it runs."""

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
    """The gradients and the seconds that one attack has taken."""

    gradients: AttackStats
    seconds: float = 0.0

    def state(self) -> list[float]:
        """Plain numbers, for `load`."""
        return [*(getattr(self.gradients, name) for name in _COUNTS), self.seconds]

    def load(self, state: Sequence[float]) -> None:
        """Add the numbers of an earlier `state()`."""
        *counts, seconds = state
        taken = AttackStats(**dict(zip(_COUNTS, map(int, counts), strict=True)))
        self.gradients, self.seconds = self.gradients.plus(taken), float(seconds)


def charge(
    tallies: Sequence[Tally], rows: Sequence[int], stats: AttackStats, seconds: float
) -> None:
    """Divide gradients and seconds among attacks, in proportion to the rows that each had in the batch."""
    parts = {name: shares(getattr(stats, name), rows) for name in _COUNTS}
    for number, tally in enumerate(tallies):
        own = AttackStats(**{name: part[number] for name, part in parts.items()})
        tally.gradients = tally.gradients.plus(own)
        tally.seconds += seconds * rows[number] / sum(rows)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` divided into integers in proportion to the weights; they sum to `total`, and are exact if possible."""
    ends, passed, everything = [], 0, sum(weights)
    for weight in weights:
        passed += weight
        ends.append(total * passed // everything)
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class WorkEstimator(NamedTuple):
    """Estimates the gradient passes (of one image) of future work, from the taken and planned ones of finished work."""

    taken: int = 0
    planned: int = 0

    def plus(self, taken: int, planned: int) -> WorkEstimator:
        """The estimator with this work as finished, too."""
        return WorkEstimator(self.taken + taken, self.planned + planned)

    def expected(self, planned: float) -> float:
        """The passes expected of planned ones; all of them, as long as no work is finished."""
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
    """The gradient passes, of one image each, that attacks in a shared run are still expected to take.

    In the current restart: `left`, scaled by the estimator. In a later restart a sample takes the steps of the longest
    attack to which it is still robust. That is known for samples that are done with the current restart; of the
    others, the same share is expected to stay robust as of those that are done (all, as long as none is done). A
    sample that is robust after one restart is assumed to stay robust, so the estimate is a little high.

    Args:
        budgets: (steps, restarts) of each of the M attacks.
        restart: number of the current restart.
        before: bool [M, N], to which attacks each sample was robust at the start of the current restart.
        standing: bool [M, N], to which it is robust now.
        done: bool [N], which samples are done with the current restart.
        left: planned steps that the other samples have left in it.
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
    """Estimates of attacks to come from finished ones, separately for first and for later restarts."""

    def __init__(self) -> None:
        self._first, self._later = WorkEstimator(), WorkEstimator()

    def add(self, restart: int, taken: int, planned: int) -> None:
        """Add a finished restart: the passes it took, and those planned, samples times steps."""
        if restart == 0:
            self._first = self._first.plus(taken, planned)
        else:
            self._later = self._later.plus(taken, planned)

    def expected(self, upcoming: Sequence[Sequence[int]]) -> float:
        """Gradient passes expected of attacks to come, given the planned ones of each of their restarts."""
        return sum(
            (self._later if restart else self._first).expected(planned)
            for attack in upcoming
            for restart, planned in enumerate(attack)
        )


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line, by default on standard error, above the bar if one is shown."""
    from tqdm import tqdm  # of an extra, which evaluating from Python does not need

    tqdm.write(text, file=file or sys.stderr)
    (file or sys.stderr).flush()


class Progress:
    """Shows the passes done, the total expected, and the remaining time at the rate so far.

        with Progress() as tell:
            evaluate_suite(..., tell=tell)

    The total changes as samples turn out not to be robust, which leaves fewer passes to do. Each part
    counts in its own unit (gradients of images; for corruptions, images), and the remaining time is
    that of the part shown.
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
        """Show what is being measured, its passes done (those of an interrupted process included) and those to come."""
        if self._live:
            self._bar.set_description(name, refresh=False)
            self._bar.total = done + remaining
            self._bar.update(done - self._bar.n)
            return
        if self._quiet:
            return
        now = time.monotonic()
        if done < self._done:  # the first call of a part: its time starts here
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
