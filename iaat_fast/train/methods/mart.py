"""MART: misclassification aware adversarial training (Wang et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import gaussian_start, start_seed
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext, is_correct
from iaat_fast.train.methods.passes import Fooled, Stage, training_attack, update

# The released code avoids log(0) by these, where the paper has 1 - p and log p.
_WRONG = 1.0001
_MISSED = 1.0000001
_TINY = 1e-12


class Mart(Method):
    """BCE(f(x_adv), y) + beta * KL(f(x) || f(x_adv)) * (1 - f_y(x)).

    The boosted cross-entropy BCE = -log p_y - log(1 - max_{j != y} p_j), both of x_adv; misclassified
    clean samples get the larger weight in the second term. x_adv is PGD's on the cross-entropy.

    As in the released code: beta is lambda of the paper (5 there for a ResNet-18, 6 for a WideResNet;
    the presets follow); the attack starts at x + 0.001 * N(0, 1); the gradient flows through the
    clean predictions too, also those in the weight. Unlike the released code: radius and step are
    the preset's (8/255 and 2/255), as for all methods, where it has 0.031 and 0.007, and the start is
    clamped to [0, 1] unless attack.clamp_start is off.

    Source: Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified
        examples", and the code released with it.
    """

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        return {**super().draw(seed, rows), "start": start_seed(seed)}

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        return training_attack(config), update(losses=2)

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        start = gaussian_start(x, index, step.drawn["start"], clamp=self.config.attack.clamp_start)
        x_adv = self.attack(
            x, y, start=start, index=index, seed=step.drawn["noise"], findings=step.findings
        )
        return Batch(x=x, y=y, x_adv=x_adv)

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert batch.x_adv is not None
        y = batch.y.view(-1, 1)
        clean, attacked = forward(batch.x), forward(batch.x_adv)
        p, q = clean.softmax(1), attacked.softmax(1)
        rival = attacked.scatter(1, y, -torch.inf).argmax(1, keepdim=True)
        wrong = (_WRONG - q.gather(1, rival) + _TINY).log()[:, 0]
        boosted = F.cross_entropy(attacked, batch.y, reduction="none") - wrong
        divergence = F.kl_div((q + _TINY).log(), p, reduction="none").sum(1)
        missed = _MISSED - p.gather(1, y)[:, 0]
        return Outcome(
            loss=boosted + self.config.baseline.mart_beta * divergence * missed,
            clean=is_correct(clean, batch.y),
            robust=is_correct(attacked, batch.y),
        )
