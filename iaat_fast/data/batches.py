"""Batches: the order of an epoch, and images gathered by index on their device."""

from __future__ import annotations

import numpy as np
import torch

from iaat_fast.data.splits import Samples


def epoch_order(n: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order in which epoch `epoch` visits `n` samples: a pure function of its arguments.

    Nothing is carried from epoch to epoch, so a resumed run finds its order without replaying the
    ones before, and every rank computes the same one.

    Returns:
        int64 [n] on the CPU, a permutation of 0 .. n-1.

    Raises:
        ValueError: a negative argument.
    """
    for name, value in (("n", n), ("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{name}: expected 0 or more, got {value}")
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def fetch(split: Samples, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the samples `index` as a float batch.

    Args:
        split: where to gather from.
        index: int64 [B], sample numbers, on any device.

    Returns:
        x float32 [B, C, H, W] in [0, 1] (pixel / 255), contiguous, and y int64 [B], both on the
        split's device.

    Raises:
        TypeError: `index` is not int64.
        ValueError: `index` is not [B].
        UnreadableImage: a file that cannot be decoded, named.
        IndexError: a number outside 0 .. len(split)-1 (where `index` lies on the CPU; on a GPU
            the check would cost a synchronisation and is left to the gather).
    """
    _check_index(index, len(split))
    return split.gather(index), split.labels.index_select(0, index.to(split.labels.device))


def _check_index(index: torch.Tensor, size: int) -> None:
    if index.dtype != torch.int64:
        raise TypeError(f"index: expected int64, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"index: expected shape [B], got {list(index.shape)}")
    if index.device.type == "cpu" and len(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise IndexError(f"index: expected numbers in 0 .. {size - 1}, got {low} .. {high}")
