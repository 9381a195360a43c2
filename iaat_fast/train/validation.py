"""Evaluation of the test images by all ranks: each takes every k-th batch, and afterwards all have all verdicts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast.attacks import AttackStats
from iaat_fast.data import Samples
from iaat_fast.evaluate import RobustResult, natural_verdicts, robust_accuracy
from iaat_fast.train.distributed import Ranks


def shared_accuracy(ranks: Ranks, model: nn.Module, split: Samples, *, batch_size: int) -> float:
    """Natural accuracy of all samples, the same on every rank."""
    verdicts = shared_verdicts(ranks, model, split, batch_size=batch_size)
    return int(verdicts.sum()) / len(split)


def shared_verdicts(ranks: Ranks, model: nn.Module, split: Samples, *, batch_size: int) -> Tensor:
    """bool [N] on the CPU, whether each sample is classified correctly, the same on every rank.

    The batches, and so the verdicts, are the same as in one process.
    """
    samples = _shard(ranks, split, batch_size)
    if samples is None:
        return natural_verdicts(model, split, batch_size=batch_size)
    right = torch.zeros(len(split), dtype=torch.bool)
    if len(samples):
        right[samples.cpu()] = natural_verdicts(
            model, split, batch_size=batch_size, samples=samples
        )
    return _merged(ranks, right)


def shared_robust_accuracy(
    ranks: Ranks, model: nn.Module, split: Samples, *, batch_size: int, **attack: Any
) -> RobustResult:
    """Accuracy of all samples under PGD with restarts (`attack`, see `robust_accuracy`), the same on every rank.

    Noise is a function of the sample. After a restart, the samples that are still robust are batched in another way
    than in one process, which may change how a network's layers round.
    """
    samples = _shard(ranks, split, batch_size)
    right, gradients = torch.zeros(len(split), dtype=torch.bool), AttackStats()
    if samples is None or len(samples):
        result = robust_accuracy(model, split, batch_size=batch_size, samples=samples, **attack)
        right, gradients = result.correct, result.gradients
    right = _merged(ranks, right)
    counts = {name: ranks.sum(count) for name, count in dataclasses.asdict(gradients).items()}
    return RobustResult(
        accuracy=int(right.sum()) / len(split), correct=right, gradients=AttackStats(**counts)
    )


def _merged(ranks: Ranks, verdicts: Tensor) -> Tensor:
    """The verdicts of all ranks together, bool [N]; each rank has False for the samples of the others."""
    found = verdicts.to(torch.uint8)
    ranks.reduce(found)
    return found.bool()


def _shard(ranks: Ranks, split: Samples, batch_size: int) -> Tensor | None:
    """The numbers of the samples of this rank's batches; None if there is one rank, which has all of them."""
    if ranks.count == 1:
        return None
    numbers = torch.arange(len(split), device=split.labels.device)
    batches = numbers.split(batch_size)[ranks.rank :: ranks.count]
    return torch.cat(batches) if batches else numbers[:0]
