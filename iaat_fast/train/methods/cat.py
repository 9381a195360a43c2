"""Customized adversarial training: radii that grow where they are withstood, labels that soften with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast import attacks, ops
from iaat_fast.attacks import losses
from iaat_fast.attacks.call import Call
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import attack_arguments
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext, is_correct
from iaat_fast.train.methods.passes import CLEAN_VERDICTS, Fooled, Stage, training_attack, update
from iaat_fast.train.seeds import Stream, stream_seed

# The largest float32 below 1/2: uniform draws that lie within it of 1/2 are above 0, so that their logarithm is finite.
_ALMOST_HALF = 0.5 - 2**-25


@dataclass(frozen=True, kw_only=True)
class Smoothed(Batch):
    """A batch with soft labels, [N, C], whose rows add up to 1."""

    labels: Tensor


class SoftLabelPGD(attacks.PGD):
    """PGD on the loss of CAT against soft labels.

    Attributes:
        labels: [N, C], those of the next call.
        kappa: of the margin in the mixed loss; None: cross-entropy alone.
    """

    labels: Tensor
    kappa: float | None = None

    def _aim(self, call: Call) -> None:
        y = call.safe_classes(call.y, self.labels.shape[1])
        call.goal = torch.stack([self.labels, _onehot(y, self.labels)], dim=1)

    def _cotangent(self, logits: Tensor, goal: Tensor, source: Tensor | None = None) -> Tensor:
        soft, onehot = goal.unbind(1)
        # The divergence from the labels: the cross-entropy, except for a constant of each sample.
        result = losses.cotangent(
            "kl",
            logits,
            soft.log(),
            targeted=False,
            # Two terms of one loss may not be rescaled one by one.
            saturation_proof=self.network.saturation_proof and self.kappa is None,
        )
        if self.kappa is None:
            return result
        y, logits = onehot.argmax(1), logits.to(result.dtype)
        counts = losses.value("cw", logits, y, targeted=False) > -self.kappa
        margin = losses.cotangent("cw", logits, y, targeted=False)
        return result + margin * counts.unsqueeze(1)


class Customized(Method):
    """CE(f(x_adv), y~), at a radius per sample that grows as long as the sample withstands it.

    In a step, for a sample whose radius is eps_i (0 at first):

        tried = min(eps_i + cat_eta, cat_eps_max)
        x_adv = PGD within tried, from x, on the loss against the label of eps_i
        eps_i = tried if f(x_adv) is still the true class, else eps_i
        y~    = (1 - cat_c * eps_i) * onehot(y) + cat_c * eps_i * Dirichlet(1, ..., 1)

    So a radius never shrinks, and a sample that was fooled is trained on an image beyond its radius, by cat_eta at
    most. Each label is drawn twice, for the attack and for the update. cat_loss "mix" (CAT-MIX) adds the margin
    max(max_{j != y} f_j - f_y, -cat_kappa) to the cross-entropy (CAT-CE), in the attack and in the update.

    From the paper are the algorithm, eta = 0.005, eps_max = 8/255, c = 10, ten steps and the Dirichlet distribution's
    parameter 1. Settled here: eps_max bounds the attack too, and not only what is stored; the margin has weight 1; a
    radius is tried in the attack's BatchNorm mode (attack.bn); step and schedule are the preset's. The code released
    with the paper, from which kappa = 10 is, differs from the algorithm: radii grow by 0.0025 and where the attack does
    fool, and the margin is weighted by the radius.

    Source: Cheng, Lei, Chen, Dhillon, Hsieh, "CAT: customized adversarial training for improved robustness", IJCAI
        2022, Algorithm 1.
    """

    aims = False
    attack: SoftLabelPGD

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        super().__init__(config, model, memory)
        # "kl" is the loss that has no target; see `SoftLabelPGD._cotangent`.
        self.attack = SoftLabelPGD(model, **{**attack_arguments(config.attack), "loss": "kl"})
        if config.baseline.cat_loss == "mix":
            self.attack.kappa = config.baseline.cat_kappa

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        return 0.0

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        labels = torch.tensor([stream_seed(seed, Stream.LABELS)])
        return {**super().draw(seed, rows), "labels": labels}

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        verdicts = Stage(name="verdicts of the attack", kind="forward", passes=1)
        return CLEAN_VERDICTS, training_attack(config), verdicts, update()

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        config = self.config.baseline
        clean = self.attack.logits(x)
        onehot, noise = _onehot(y, clean), dirichlet(clean, index, step.drawn["labels"], times=2)
        eps = self.memory.values[index].clamp(max=config.cat_eps_max)
        tried = (eps + config.cat_eta).clamp(max=config.cat_eps_max)
        self.attack.labels = torch.lerp(onehot, noise[0], self._share(eps, clean))
        x_adv = self.attack(
            x, y, eps=tried, start=x, index=index, seed=step.drawn["noise"], findings=step.findings
        )
        withstood = is_correct(self.attack.logits(x_adv), y)
        eps = torch.where(withstood, tried, eps)
        self.memory.store(index, eps, findings=step.findings)
        return Smoothed(
            x=x,
            y=y,
            x_adv=x_adv,
            correct=is_correct(clean, y),
            labels=torch.lerp(onehot, noise[1], self._share(eps, clean)),
        )

    def _share(self, eps: Tensor, like: Tensor) -> Tensor:
        """[N, 1], how much of the label is drawn."""
        return (self.config.baseline.cat_c * eps).unsqueeze(1).to(like.dtype)

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert isinstance(batch, Smoothed)
        assert batch.x_adv is not None
        logits = forward(batch.x_adv)
        loss = F.cross_entropy(logits, batch.labels, reduction="none")
        if self.attack.kappa is not None:
            margin = losses.value("cw", logits, batch.y, targeted=False)
            loss = loss + margin.clamp(min=-self.attack.kappa)
        return Outcome(loss=loss, clean=batch.correct, robust=is_correct(logits, batch.y))


def dirichlet(like: Tensor, index: Tensor, seed: Tensor, *, times: int) -> Tensor:
    """Draws of Dirichlet(1, ..., 1), [times, N, C] for `like` [N, C], in its dtype: normalised exponential variates.

    A draw depends only on the seed, the sample's number and that of the draw, not on the batch.

    Args:
        like: gives shape, dtype and device.
        index: int64 [N], numbers of the samples.
        seed: int64 [1], on the device of `like`.
        times: independent draws of each sample.
    """
    n, classes = like.shape
    radii = like.new_full((times * n,), _ALMOST_HALF)
    uniform = ops.random_start_linf(torch.full_like(like, 0.5), radii, seed, index)
    exponential = -uniform.log().view(times, n, classes)
    return exponential / exponential.sum(2, keepdim=True)


def _onehot(y: Tensor, like: Tensor) -> Tensor:
    """[N, C] in the dtype of `like`; a class out of range, which the attack refuses, gives a row of zeros."""
    return (y.unsqueeze(1) == torch.arange(like.shape[1], device=y.device)).to(like.dtype)
