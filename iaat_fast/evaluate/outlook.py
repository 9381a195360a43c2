"""How much an evaluation still has to do, in gradient passes, from what it has seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Economy(NamedTuple):
    """Steps taken by the samples that are done with a restart, and steps they would have taken to their last mark."""

    taken: int = 0
    asked: int = 0

    def with_left(self, steps: Tensor, depths: Tensor) -> Economy:
        """These and the samples that have now left, int64 [n] each."""
        return Economy(self.taken + int(steps.sum()), self.asked + int(depths.sum()))

    @property
    def ratio(self) -> float:
        """Steps taken per step asked for; 1 as long as nobody is done."""
        return self.taken / self.asked if self.asked else 1.0


def expected_passes(
    marks: Sequence[tuple[int, int]],
    *,
    restart: int,
    before: Tensor,
    standing: Tensor,
    settled: Tensor,
    left: int,
    economy: Economy,
) -> float:
    """Gradient passes, one image each, that trajectories are expected to take yet.

    Those of the restart under way are `left`, times the economy seen so far. Those of later restarts: samples that are
    done with this one are counted as they stand; of the others, the share that is expected to stand is that of
    the samples done, step by step (all of them, as long as nobody is done). A sample that survived one restart is
    taken to survive the others, so the estimate is a little high, never a number of attacks that will not be run.

    Args:
        marks: (steps, restarts) of each measurement.
        restart: number of the restart under way.
        before: bool [M, N], who stood when it began.
        standing: bool [M, N], who stands.
        settled: bool [N], who is done with it.
        left: steps to their last mark of all who are not.
        economy: of those who are.
    """
    passes = left * economy.ratio
    depths = sorted({steps for steps, _ in marks})
    for later in range(restart + 1, max(restarts for _, restarts in marks)):
        shallower = 0
        for depth in depths:
            rows = [
                m
                for m, (steps, restarts) in enumerate(marks)
                if steps >= depth and restarts > later
            ]
            if rows:
                stood, stand = before[rows].any(0), standing[rows].any(0)
                known = int((stand & settled).sum())
                seen = int((stood & settled).sum())
                rate = known / seen if seen else 1.0
                count = known + rate * int((stand & ~settled).sum())
                passes += count * (depth - shallower)
            shallower = depth
    return passes


class Rates:
    """Passes taken per pass planned, of first restarts and of later ones: what attacks yet to come will need."""

    def __init__(self) -> None:
        self._first, self._later = Economy(), Economy()

    def add(self, restart: int, taken: int, planned: int) -> None:
        """A restart that is finished: the passes it took, and samples times steps."""
        if restart == 0:
            self._first = Economy(self._first.taken + taken, self._first.asked + planned)
        else:
            self._later = Economy(self._later.taken + taken, self._later.asked + planned)

    def expected(self, upcoming: Sequence[Sequence[int]]) -> float:
        """Gradient passes of attacks to come, given the planned ones of each restart."""
        return sum(
            planned * (self._later if restart else self._first).ratio
            for attack in upcoming
            for restart, planned in enumerate(attack)
        )
