"""Accuracies on test images whose batches are dealt out to the ranks in turn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iaat_fast.data import Samples
from iaat_fast.evaluate import natural_verdicts, robust_accuracy
from iaat_fast.train.config import EvaluationConfig
from iaat_fast.train.ranks import Ranks


def shared_accuracy(ranks: Ranks, model: nn.Module, split: Samples, *, batch_size: int) -> float:
    """Natural accuracy, on every rank that of all samples.

    The batches are those of one process, so the verdicts are the same.
    """
    samples = _mine(ranks, split, batch_size)
    right = 0
    if samples is None or len(samples):
        right = int(natural_verdicts(model, split, batch_size=batch_size, samples=samples).sum())
    return ranks.sum(right) / len(split)


def shared_robust_accuracy(
    ranks: Ranks, model: nn.Module, split: Samples, how: EvaluationConfig, *, seed: int
) -> float:
    """Accuracy under PGD with restarts, on every rank that of all samples.

    Noise follows the sample. Only those still standing after a restart share batches otherwise than
    in one process, which may change how a network's layers round.
    """
    samples = _mine(ranks, split, how.batch_size)
    robust = 0
    if samples is None or len(samples):
        result = robust_accuracy(
            model,
            split,
            eps=how.eps,
            alpha=how.alpha,
            steps=how.steps,
            restarts=how.restarts,
            batch_size=how.batch_size,
            seed=seed,
            targeted="random" if how.targeted == "random" else False,
            samples=samples,
        )
        robust = int(result.correct.sum())
    return ranks.sum(robust) / len(split)


def _mine(ranks: Ranks, split: Samples, batch_size: int) -> Tensor | None:
    """The numbers of the samples of this rank's batches; None where it has all of them."""
    if ranks.count == 1:
        return None
    numbers = torch.arange(len(split), device=split.labels.device)
    batches = numbers.split(batch_size)[ranks.rank :: ranks.count]
    return torch.cat(batches) if batches else numbers[:0]
