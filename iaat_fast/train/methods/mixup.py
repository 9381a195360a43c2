"""Interpolated adversarial training, the mixup baseline (Lamb et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext
from iaat_fast.train.methods.passes import Fooled, Stage, training_attack, update
from iaat_fast.train.seeds import Stream, stream_seed


@dataclass(frozen=True, kw_only=True)
class Pairs(Batch):
    """A batch with each sample's partner, int64 [N], and the weight of the sample itself in [0, 1], float64."""

    partner: Tensor
    weight: Tensor


class InterpolatedAdversarial(Method):
    """The mean of the mixup loss on clean and the mixup loss on adversarial images.

        mix(a, b) = weight * a + (1 - weight) * b,  weight ~ Beta(alpha, alpha)
        loss = (CE(f(mix(x, x')), mix(y, y')) + CE(f(mix(x_adv, x_adv')), mix(y, y'))) / 2

    Both losses use the same weight, one per batch, and the same pairing of the samples. Samples are
    paired within a micro-batch. The adversarial images are PGD's at the fixed radius, made before
    they are mixed. A mixed image has no single class, so no accuracy is counted.

    Source: Lamb et al. 2019, "Interpolated adversarial training: achieving robust neural networks
        without sacrificing accuracy"; Balaji et al. 2019, Table 6.
    """

    counts_clean = False
    counts_robust = False

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        draws = np.random.default_rng(stream_seed(seed, Stream.MIXUP))
        alpha = self.config.baseline.mixup_alpha
        weight = draws.beta(alpha, alpha)  # first, so that it is the same in all micro-batches
        return {
            **super().draw(seed, rows),
            # Without a dimension it does not promote the images' dtype, like a Python number.
            "weight": torch.tensor(weight, dtype=torch.float64),
            "partner": torch.from_numpy(draws.permutation(rows)),
        }

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        return training_attack(config), update(losses=2)

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        x_adv = self.attack(x, y, index=index, seed=step.drawn["noise"], findings=step.findings)
        return Pairs(
            x=x, y=y, x_adv=x_adv, partner=step.drawn["partner"], weight=step.drawn["weight"]
        )

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert isinstance(batch, Pairs)
        assert batch.x_adv is not None
        losses = [_mixed_loss(forward, images, batch) for images in (batch.x, batch.x_adv)]
        return Outcome(loss=(losses[0] + losses[1]) / 2)


def _mixed_loss(forward: Forward, images: Tensor, batch: Pairs) -> Tensor:
    """[N], the cross-entropy of mixed images with their mixed labels."""
    weight, partner = batch.weight, batch.partner
    logits = forward(weight * images + (1 - weight) * images[partner])
    own, others = (
        F.cross_entropy(logits, y, reduction="none") for y in (batch.y, batch.y[partner])
    )
    return weight * own + (1 - weight) * others
