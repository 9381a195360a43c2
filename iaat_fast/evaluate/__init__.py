"""Accuracies, natural and under attack, one by one or by a suite that is recorded and resumed.

    from iaat_fast.evaluate import accuracy, evaluate_suite, recount, robust_accuracy

    natural = accuracy(model, data.test)
    robust = robust_accuracy(model, data.test, eps=8/255, alpha=2/255, steps=10, restarts=5)
    content = evaluate_suite(EvalTarget.of(model, data.test), "cifar", folder="evaluation/mine")
    recount("evaluation/mine", range(1000))["pgd10x5-eps8"]["accuracy"]

On the command line: `python -m iaat_fast.evaluate --help`.
"""

from __future__ import annotations

from iaat_fast.evaluate.accuracies import (
    RobustResult,
    accuracy,
    check_model,
    natural_verdicts,
    robust_accuracy,
)
from iaat_fast.evaluate.autoattack import AutoAttackResult, autoattack
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.evaluation import evaluate_suite
from iaat_fast.evaluate.record import Record
from iaat_fast.evaluate.results import read_record, recount
from iaat_fast.evaluate.shared_pgd import AttackBudget, SharedPGD
from iaat_fast.evaluate.suites import SUITES
from iaat_fast.evaluate.transfer import Surrogate
from iaat_fast.evaluate.transfer_matrix import TransferMatrix, transfer_matrix

Subject, Mark, Trajectories = EvalTarget, AttackBudget, SharedPGD  # their earlier names

__all__ = [
    "SUITES",
    "AttackBudget",
    "AutoAttackResult",
    "EvalTarget",
    "Mark",
    "Record",
    "RobustResult",
    "SharedPGD",
    "Subject",
    "Surrogate",
    "Trajectories",
    "TransferMatrix",
    "accuracy",
    "autoattack",
    "check_model",
    "evaluate_suite",
    "natural_verdicts",
    "read_record",
    "recount",
    "robust_accuracy",
    "transfer_matrix",
]
