"""The passes of the network in a training step, per image: the `Stage`s of which each method lists its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from iaat_fast import validate
from iaat_fast.attacks.active_set import bucket
from iaat_fast.train.config import TrainConfig

Kind = Literal["forward", "gradient", "update"]
"""A kind of pass. "forward": of the live network, without gradient. "gradient": forward and gradient with respect to
the images, of the network that the attack uses. "update": the training forward and the gradient with respect to the
weights, of the live network."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a step: `passes` of one kind for each image of the batch.

    depends_on_samples: whether `passes` depends on the shares of `Fooled`.
    copies: copies of the batch that go through the network at once.
    """

    name: str
    kind: Kind
    passes: float
    depends_on_samples: bool = False
    copies: int = 1


CLEAN_VERDICTS = Stage(name="clean verdicts", kind="forward", passes=1)


def training_attack(config: TrainConfig) -> Stage:
    """The attack that makes the images to train on."""
    return Stage(name="training attack", kind="gradient", passes=config.attack.steps)


def update(losses: int = 1) -> Stage:
    """The update of the weights, whose loss takes `losses` images per sample: 1, or 2 for clean and adversarial."""
    return Stage(name="update of the weights", kind="update", passes=losses)


@dataclass(frozen=True, kw_only=True)
class Fooled:
    """Shares, in [0, 1], of the samples that Algorithm 2's candidates fool.

    once: those that the attack at prev + gamma fools, which the strategy lazy attacks at prev as well.
    twice: those that both fool; a final "reuse" then attacks them at prev - gamma, unless batched.
    """

    once: float = 0.5
    twice: float = 0.25

    def __post_init__(self) -> None:
        for name, value in (("fooled", self.once), ("fooled-twice", self.twice)):
            validate.number(f"--{name}", value, high=1.0)
        if self.twice > self.once:
            raise ValueError(
                f"--fooled-twice: {self.twice:g}, expected at most --fooled, {self.once:g}"
            )

    def padded(self, batch: int) -> Fooled:
        """The shares attacked on a GPU, where the fooled samples of a batch are padded to one of a few sizes.

        They are means over batches of `batch` samples, each fooled independently with the probability of these shares.
        """
        once, twice = _mean_padded(self.once, batch), _mean_padded(self.twice, batch)
        return Fooled(once=once, twice=min(once, twice))


def _mean_padded(share: float, batch: int) -> float:
    fooled = torch.arange(batch + 1, dtype=torch.float64)
    stand = batch - fooled
    # The binomial distribution, up to a factor that the mean divides by.
    p = fooled.new_tensor(share)
    log_chance = torch.xlogy(fooled, p) + torch.xlogy(stand, 1 - p)
    log_chance = log_chance - torch.lgamma(fooled + 1) - torch.lgamma(stand + 1)
    chance = (log_chance - log_chance.amax()).exp()
    sizes = fooled.new_tensor([bucket(number, batch) for number in range(batch + 1)])
    return min(1.0, float((chance * sizes).sum() / chance.sum() / batch))
