"""Max-margin adversarial training: every sample at its own margin (Ding et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast import attacks
from iaat_fast.attacks import losses
from iaat_fast.attacks.active_set import as_column
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack
from iaat_fast.train.methods.method import Batch, Forward, Method, Outcome, StepContext
from iaat_fast.train.methods.passes import CLEAN_VERDICTS, Fooled, Stage, training_attack, update

# How far beyond d_max margins are searched for, as a multiple of it (released code).
_BEYOND = 1.05


@dataclass(frozen=True, kw_only=True)
class Margins(Batch):
    """A batch that also marks the samples whose adversarial loss counts, bool [N]."""

    counted: Tensor


class MaxMargin(Method):
    """Cross-entropy at the nearest adversarial example, which widens the margin where it is below d_max.

        loss_i = w * CE(f(x_i), y_i) + (1 - w) * CE(f(x_i + d_i u_i), y_i)

    A sample counts as correct if the soft logit margin log(sum_{j != y} exp f_j) - f_y is negative, that is p_y > 1/2.
    For a correct sample, PGD at the radius of its last visit (at first, and at least, d_min) gives a direction u_i;
    bisection along it in [0, 1.05 d_max] gives the margin d_i, where the soft logit margin is 0. The others have
    d_i = 0. The second term is left out where d_i >= d_max. The memory holds the d_i.

    PGD should ascend the soft logit margin. Its gradient is that of the cross-entropy divided by 1 - p_y, which has
    the same sign, so PGD on the cross-entropy is the same attack. Its step is mma_step_scale * radius / steps;
    attack.alpha is not used.

    BatchNorm is in one mode, attack.bn, in the whole search: where samples are classified, in PGD and in the bisection.

        "eval"          the network that is evaluated. A margin depends on its sample alone, not on the batch, and only
                        the two forwards of the update move the running statistics, that of the clean images first.
        "train"         the function that the update differentiates, on the statistics of the micro-batch. The running
                        ones are as after "eval".
        "train_update"  the same, and the 1 + attack.steps + mma_bisections forwards of the search move them too.

    Unlike the released code, which takes PGD's steps in evaluation mode, but classifies and bisects in training mode,
    where each forward moves the running statistics and only the correct samples are bisected: that is none of the
    three. Also, x + d u is clamped to [0, 1] for training as well, where that clamps only in the bisection; and the
    schedule is the preset's.

    Source: Ding et al. 2020, "MMA training: direct input space margin maximization through
        adversarial training" (MMA and AN-PGD there), and the code released with it.
    """

    aims = False
    counts_robust = False  # at the margin a sample is neither robust nor not

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        super().__init__(config, model, memory)
        scale, steps = config.baseline.mma_step_scale, config.attack.steps
        self.attack = make_attack(config.attack, model, alpha=lambda eps: scale * eps / steps)

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        return config.baseline.mma_d_min

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        halvings = config.baseline.mma_bisections
        bisection = Stage(name="bisection of the margins", kind="forward", passes=halvings)
        return CLEAN_VERDICTS, training_attack(config), bisection, update(losses=2)

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        config = self.config.baseline
        logits = self.attack.logits(x)
        fits = _soft_margin(logits, y) < 0
        last = self.memory.values[index].clamp(config.mma_d_min, _BEYOND * config.mma_d_max)
        radius = torch.where(fits, last, 0.0)
        x_adv = self.attack(
            x, y, eps=radius, index=index, seed=step.drawn["noise"], findings=step.findings
        )
        direction = (x_adv - x) / as_column(torch.where(fits, radius, 1.0), x)
        margin = bisected_margin(
            self.attack,
            x,
            y,
            direction,
            radius,
            most=_BEYOND * config.mma_d_max,
            steps=config.mma_bisections,
        )
        margin = torch.where(fits, margin, 0.0)
        self.memory.store(index, margin, findings=step.findings)
        return Margins(
            x=x,
            y=y,
            x_adv=_moved(x, direction, margin),
            correct=logits.argmax(1) == y,
            counted=margin < config.mma_d_max,
        )

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        assert isinstance(batch, Margins)
        assert batch.x_adv is not None
        clean, attacked = (
            F.cross_entropy(forward(images), batch.y, reduction="none")
            for images in (batch.x, batch.x_adv)
        )
        weight = self.config.baseline.mma_clean_weight
        loss = weight * clean + (1 - weight) * attacked * batch.counted
        return Outcome(loss=loss, clean=batch.correct)


def bisected_margin(
    attack: attacks.PGD,
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    radius: Tensor,
    *,
    most: float,
    steps: int,
) -> Tensor:
    """The distance along `direction` at which the soft logit margin of each sample crosses 0, up to `most`: [N].

    Args:
        attack: its `logits` are used, which are in its BatchNorm mode.
        x, y: images [N, ...] and labels int64 [N].
        direction: like x; distances are multiples of it.
        radius: [N], the distance to try first.
        most: the upper end of the search.
        steps: halvings; each takes a forward.
    """
    low, high, at = torch.zeros_like(radius), torch.full_like(radius, most), radius
    for _ in range(steps):
        holds = _soft_margin(attack.logits(_moved(x, direction, at)), y) < 0
        low, high = torch.where(holds, at, low), torch.where(holds, high, at)
        at = (low + high) / 2
    return at


def _soft_margin(logits: Tensor, y: Tensor) -> Tensor:
    """log(sum_{j != y} exp f_j) - f_y, the log-odds against y: [N]."""
    return losses.value("ce", logits, y, targeted=False)


def _moved(x: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
    return (x + as_column(distance, x) * direction).clamp(0.0, 1.0)
