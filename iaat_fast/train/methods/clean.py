"""Clean training: no attack."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext, is_correct
from iaat_fast.train.methods.passes import Fooled, Stage, update


class Clean(Method):
    """Cross-entropy on the clean images."""

    counts_robust = False

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        return 0.0

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        return (update(),)

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        return Batch(x=x, y=y)

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        logits = forward(batch.x)
        loss = F.cross_entropy(logits, batch.y, reduction="none")
        return Outcome(loss=loss, clean=is_correct(logits, batch.y))
