"""Timing several ways of doing one thing: interleaved, so that a machine whose speed drifts is fair to all."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds per call of each contender, [rounds] each, in the same rounds."""

    seconds: Mapping[str, np.ndarray]

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def percentiles(self, name: str) -> tuple[float, float, float]:
        """p20, p50 and p80 in seconds."""
        low, middle, high = np.percentile(self.seconds[name], (20, 50, 80))
        return float(low), float(middle), float(high)

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is: the median over rounds of the ratio within a round."""
        return float(np.median(self.seconds[slow] / self.seconds[fast]))


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 50,
    calls: int | Mapping[str, int] = 1,
    untimed: int = 2,
) -> Timings:
    """Time every contender once a round, `calls` (of all, or of each) at a time, after some untimed rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + untimed):
        for name, call in contenders.items():
            count = calls if isinstance(calls, int) else calls[name]
            start = time.perf_counter()
            for _ in range(count):
                call()
            if round_number >= untimed:
                seconds[name].append((time.perf_counter() - start) / count)
    return Timings({name: np.array(values) for name, values in seconds.items()})
