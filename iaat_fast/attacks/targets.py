"""Targets for targeted attacks: random ones, and the most likely wrong classes."""

from __future__ import annotations

import torch
from torch import Tensor

from iaat_fast.ops import reference

# Counter block of the target: images of fewer than 2**34 elements never reach it.
_TARGET_BLOCK = 2**32 - 1


def random_targets(y: Tensor, classes: int, seed: Tensor, index: Tensor) -> Tensor:
    """A class other than y for every sample, uniform, a function of (seed, sample number) alone.

    Args:
        y: int64 [N], true classes.
        classes: number of classes, at least 2.
        seed: int64, first entry the key of the attack.
        index: int64 [N], sample numbers.

    Returns:
        int64 [N].

    Source: IAAT, Section 4.2: targets uniform over the other classes, fixed for the whole attack.
    """
    key = reference.stream_of(seed)[0]
    zero = index.new_zeros(())
    word = reference.philox(key, zero + _TARGET_BLOCK, index, zero, zero)[0]
    return (y + 1 + (word * (classes - 1) >> 32)) % classes


def likely_targets(logits: Tensor, y: Tensor, most: int) -> Tensor:
    """The wrong classes with the largest logits, those first: int64 [N, min(most, C - 1)].

    Args:
        logits: [N, C], at the clean images.
        y: int64 [N], true classes.
        most: how many to give.
    """
    wrong = logits.scatter(1, y.view(-1, 1), -torch.inf)
    tried = min(most, logits.shape[1] - 1)
    return wrong.argsort(dim=1, descending=True, stable=True)[:, :tried]
