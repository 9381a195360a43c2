"""Accuracies, natural and under attack.

    from iaat_fast.evaluate import accuracy, robust_accuracy

    natural = accuracy(model, data.test)
    robust = robust_accuracy(model, data.test, eps=8/255, alpha=2/255, steps=10, restarts=5)

On the command line: `python -m iaat_fast.evaluate --help`.
"""

from __future__ import annotations

from iaat_fast.evaluate.accuracies import RobustResult, accuracy, check_model, robust_accuracy
from iaat_fast.evaluate.autoattack import AutoAttackResult, autoattack

__all__ = [
    "AutoAttackResult",
    "RobustResult",
    "accuracy",
    "autoattack",
    "check_model",
    "robust_accuracy",
]
