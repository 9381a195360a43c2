"""The batch that trajectories run in, whose rows may be at different steps; and fair shares of what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iaat_fast.data import Samples, fetch


@dataclass(frozen=True)
class Slots:
    """The batch: sample numbers and steps, int64 [n] on the CPU; images, classes, iterates on the device.

    A row that has not been called yet is at step -1: a mark of 0 steps still lies before it.
    """

    index: Tensor
    step: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor

    @classmethod
    def none(cls, split: Samples) -> Slots:
        """No rows, of the split's shape of images."""
        nobody = torch.zeros(0, dtype=torch.int64)
        x, y = fetch(split, nobody.to(split.labels.device))
        return cls(nobody, nobody, x, y, x)

    @property
    def taken(self) -> Tensor:
        """int64 [n], steps taken."""
        return self.step.clamp(min=0)

    def joined(self, others: Slots) -> Slots:
        """These rows, then the others."""
        return Slots(
            torch.cat([self.index, others.index]),
            torch.cat([self.step, others.step]),
            torch.cat([self.x, others.x]),
            torch.cat([self.y, others.y]),
            torch.cat([self.x_adv, others.x_adv]),
        )

    def only(self, rows: Tensor) -> Slots:
        """Those rows, bool [n], for which it is True; this itself where it is True for all."""
        if bool(rows.all()):
            return self
        kept = rows.to(self.y.device)
        return Slots(
            self.index[rows], self.step[rows], self.x[kept], self.y[kept], self.x_adv[kept]
        )


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts as the weights have it, that sum to it; where they divide it, exactly."""
    ends, passed, everything = [], 0, sum(weights)
    for weight in weights:
        passed += weight
        ends.append(total * passed // everything)
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
