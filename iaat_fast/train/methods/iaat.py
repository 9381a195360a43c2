"""Instance adaptive adversarial training: Algorithm 1 of Balaji et al. 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_selector
from iaat_fast.train.methods.method import Batch, Forward, Method, Moment, Outcome, right


class InstanceAdaptive(Method):
    """Cross-entropy on adversarial images, every sample at the radius that Algorithm 2 finds for it.

    Source: Balaji et al. 2019, Algorithm 1.
    """

    radii = "adaptive"

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        super().__init__(config, model, memory)
        self.selector = make_selector(config, self.attack)

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        return 0.0  # what a run without warm-up starts from

    def phase(self, epoch: int) -> str:
        return "warm-up" if epoch < self.config.epsilon.warmup_epochs else "adaptive"

    def reads(self, epoch: int) -> str | None:
        strategy, final = self.memory.strategy, self.memory.final
        if self.phase(epoch) == "warm-up" or strategy == "batched":
            return None
        if strategy == "sequential" and final == "exact":
            return None
        why = "asks which samples its first attack has fooled"
        if strategy == "sequential":
            why = "asks which samples chose the candidate it has not attacked"
        return f"strategy {strategy!r} with final {final!r} {why}"

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, at: Moment) -> Batch:
        """Lines 3 to 10 of Algorithm 1."""
        config = self.config.epsilon
        if at.epoch < config.warmup_epochs:
            # Lines 9 and 10, then 4 and 8.
            correct = right(self.attack.logits(x), y)
            eps = self.memory.warm_up(
                index,
                config.eps_w,
                correct=correct,
                rule=config.warmup_rule,
                findings=at.findings,
            )
            x_adv = self.attack(
                x, y, eps=eps, index=index, seed=at.drawn["noise"], findings=at.findings
            )
        else:
            # Line 6, which is Algorithm 2, and 8; the clean images (9, 10) are judged together with the candidates.
            x_adv = self.memory.select(
                self.selector,
                x,
                y,
                index,
                judge=True,
                seed=at.drawn["noise"],
                final_attack=self.attack,
                findings=at.findings,
            ).x_adv
            assert self.memory.correct is not None
            correct = self.memory.correct
        if config.misclassified_input == "clean":
            x_adv = torch.where(correct.view(-1, *[1] * (x.dim() - 1)), x_adv, x)
        return Batch(x=x, y=y, x_adv=x_adv, correct=correct)

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert batch.x_adv is not None
        assert batch.correct is not None
        logits = forward(batch.x_adv)
        loss = F.cross_entropy(logits, batch.y, reduction="none")
        robust = right(logits, batch.y) & batch.correct
        return Outcome(loss=loss, clean=batch.correct, robust=robust)
