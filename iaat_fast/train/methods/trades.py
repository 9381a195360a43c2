"""TRADES: cross-entropy on clean images plus the divergence of the adversarial predictions (Zhang et al. 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import gaussian_start, make_attack, start_seed
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext, is_correct
from iaat_fast.train.methods.passes import Fooled, Stage, training_attack, update


class Trades(Method):
    """CE(f(x), y) + beta * KL(f(x) || f(x_adv)), where x_adv maximises the divergence.

    As in the released code: beta is 1 / lambda of the paper; the attack starts at x + 0.001 * N(0, 1),
    takes 10 steps (attack.steps) with frozen BatchNorm (attack.bn); the gradient flows through both
    predictions. Unlike the released code: radius and step are the preset's (8/255 and 2/255), as for
    all methods, where it has 0.031 and 0.007; the start is clamped to [0, 1] unless attack.clamp_start
    is off; and there is one forward of the clean images, where it has two (the same logits, one more
    update of BatchNorm's running statistics).

    Source: Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy",
        Algorithm 1.
    """

    aims = False

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        super().__init__(config, model, memory)
        self.attack = make_attack(config.attack, model, loss="kl")

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        return {**super().draw(seed, rows), "start": start_seed(seed)}

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        # The attack maximises the divergence from the clean predictions.
        clean = Stage(name="clean predictions", kind="forward", passes=1)
        return clean, training_attack(config), update(losses=2)

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        start = gaussian_start(x, index, step.drawn["start"], clamp=self.config.attack.clamp_start)
        x_adv = self.attack(
            x, y, start=start, index=index, seed=step.drawn["noise"], findings=step.findings
        )
        return Batch(x=x, y=y, x_adv=x_adv)

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert batch.x_adv is not None
        clean, attacked = forward(batch.x), forward(batch.x_adv)
        divergence = F.kl_div(
            attacked.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        loss = F.cross_entropy(clean, batch.y, reduction="none")
        return Outcome(
            loss=loss + self.config.baseline.trades_beta * divergence,
            clean=is_correct(clean, batch.y),
            robust=is_correct(attacked, batch.y),
        )
