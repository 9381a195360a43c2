"""A loss that is not finite: at which step, of which samples, and what is left of the run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iaat_fast.train.ranks import Ranks

_NAMED = 5


class FiniteLoss:
    """Watches the mean loss of an epoch, which it is given after any number of steps.

    Args:
        after: steps done already.
    """

    def __init__(self, ranks: Ranks, *, after: int) -> None:
        self._ranks = ranks
        self._looked = after

    def look(self, loss: float, step: int, epoch: int, last: list[tuple[Tensor, Tensor]]) -> None:
        """Raise FloatingPointError, on every rank, unless `loss` is finite.

        Args:
            loss: of the epoch so far, the same on all ranks.
            step: steps done.
            epoch: epochs finished.
            last: numbers and losses of this rank's samples of the last step.
        """
        looked, self._looked = self._looked, step
        if math.isfinite(loss):
            return
        where = f"the loss is {loss} at step {step} (epoch {epoch + 1})"
        if step - looked == 1:
            where += _named(self._ranks.gather(_not_finite(last)))
        elif step > looked:
            where += f"; it was finite at step {looked}, and not looked at in between"
        raise FloatingPointError(where)


def _not_finite(last: list[tuple[Tensor, Tensor]]) -> tuple[int, list[int]]:
    """How many samples a rank had, and the numbers of those whose loss is not finite."""
    bad = [number for index, loss in last for number in index[~torch.isfinite(loss)].tolist()]
    return sum(len(index) for index, _ in last), bad


def _named(found: list[tuple[int, list[int]]]) -> str:
    """The first few samples of each rank that has any."""
    size, count = sum(n for n, _ in found), sum(len(bad) for _, bad in found)
    if not count:
        return ""
    texts = []
    for rank, (_, bad) in enumerate(found):
        if bad:
            names = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
            texts.append(names if len(found) == 1 else f"{names} on rank {rank}")
    return f", that of {count} of the {size} samples of its batch: {'; '.join(texts)}"
