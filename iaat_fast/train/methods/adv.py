"""Adversarial training at a fixed radius (Madry et al. 2018)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext, is_correct
from iaat_fast.train.methods.passes import Fooled, Stage, training_attack, update


class Adversarial(Method):
    """Cross-entropy on adversarial images at the fixed radius, also of samples that are misclassified.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks",
        Equation 2.1.
    """

    counts_clean = False

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        return training_attack(config), update()

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        return Batch(
            x=x,
            y=y,
            x_adv=self.attack(x, y, index=index, seed=step.drawn["noise"], findings=step.findings),
        )

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert batch.x_adv is not None
        logits = forward(batch.x_adv)
        loss = F.cross_entropy(logits, batch.y, reduction="none")
        return Outcome(loss=loss, robust=is_correct(logits, batch.y))
