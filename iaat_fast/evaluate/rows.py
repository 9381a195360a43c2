"""What a row of a record is made of: counts with their interval, seconds, and what an attack is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iaat_fast.attacks.stats import AttackStats
from iaat_fast.evaluate.suites import PGDMeasurement


def wilson(correct: float, samples: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share.

    Args:
        correct: how many of the samples; a mean of several counts need not be whole.
        samples: independent ones.

    Source: Wilson 1927. scipy's binomtest has it for whole counts only.
    """
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    share, whole = correct / samples, 1 + z * z / samples
    middle = share + z * z / (2 * samples)
    spread = z * ((share * (1 - share) + z * z / (4 * samples)) / samples) ** 0.5
    # Where all or none are correct, that end is exact, and rounding may not take the share out of the interval.
    low = 0.0 if correct == 0 else (middle - spread) / whole
    high = 1.0 if correct == samples else (middle + spread) / whole
    return low, high


def share(correct: int, samples: int) -> dict[str, Any]:
    """An accuracy with its counts and its 95 % interval."""
    return {
        "accuracy": correct / samples,
        "correct": correct,
        "samples": samples,
        "interval_95": list(wilson(correct, samples)),
    }


def rounded(seconds: float) -> float:
    """Seconds to a millisecond, shorter times to three digits: what took time is never written down as 0."""
    return round(seconds, 3) if seconds >= 1 else float(f"{seconds:.3g}")


def natural_row(seconds: float) -> dict[str, Any]:
    """The row of the accuracy on the images as they are; its counts are the record's to add."""
    return {"key": "natural", "kind": "natural", "part": "natural", "seconds": rounded(seconds)}


def pgd_row(one: PGDMeasurement, gradients: AttackStats, seconds: float) -> dict[str, Any]:
    """The row of an attack by PGD and what it took; its counts are the record's to add."""
    return {
        "key": one.key,
        "kind": "transfer" if one.part == "transfer" else "pgd",
        "part": one.part,
        "eps": one.eps,
        "alpha": one.alpha,
        "steps": one.steps,
        "restarts": one.restarts,
        "targeted": one.targeted,
        "gradients": gradients.gradients,
        "gradients_planned": gradients.planned,
        "zero_gradient_entries": gradients.zero,
        "nan_gradient_entries": gradients.nan,
        "gradient_entries": gradients.total,
        "seconds": rounded(seconds),
    }


def attack_name(attack: Mapping[str, Any]) -> str:
    """`PGD-10 × 5 at ε = 8/255`; before it "targeted" where the attack aims at random classes."""
    aim = "targeted " if attack.get("targeted") == "random" else ""
    return f"{aim}PGD-{attack['steps']} × {attack['restarts']} at ε = {attack['eps'] * 255:g}/255"
