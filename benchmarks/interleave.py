"""Timing several providers in turn, so that a drift of the machine's speed affects all equally."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds per call of each provider, [rounds] each, in the same rounds."""

    seconds: Mapping[str, np.ndarray]

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is: the median over rounds of the ratio within a round."""
        return float(np.median(self.seconds[slow] / self.seconds[fast]))


def interleave(
    providers: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 50,
    calls: int | Mapping[str, int] = 1,
    untimed: int = 2,
) -> Timings:
    """Time every provider once per round, after some untimed rounds.

    `calls` is the number of calls per timing, one for all providers or one for each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for round_number in range(rounds + untimed):
        for name, call in providers.items():
            count = calls if isinstance(calls, int) else calls[name]
            start = time.perf_counter()
            for _ in range(count):
                call()
            if round_number >= untimed:
                seconds[name].append((time.perf_counter() - start) / count)
    return Timings({name: np.array(values) for name, values in seconds.items()})


def wait(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
