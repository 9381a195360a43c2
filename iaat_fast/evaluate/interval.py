"""An accuracy with its counts and its 95 % interval, as records hold it."""

from __future__ import annotations

from typing import Any


def share(correct: int, samples: int) -> dict[str, Any]:
    """The accuracy with its 95 % Wilson score interval."""
    from scipy.stats import binomtest

    interval = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": correct / samples,
        "correct": correct,
        "samples": samples,
        "interval_95": [float(interval.low), float(interval.high)],
    }
