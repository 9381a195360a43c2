"""What all training methods share: the two halves of a step, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack

Forward = Callable[[Tensor], Tensor]
"""The network in training mode, images [N, C, H, W] to logits [N, classes]."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the first half of a step hands to the second.

    `x` are the clean images [N, C, H, W] on [0, 1], `y` their labels int64 [N]. `x_adv`, like x, is
    what the method has made of them, None where it attacks nothing. `correct` (bool [N]) marks the
    samples classified correctly before the attack, None where the method has not asked.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor | None = None
    correct: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the training forward has shown.

    `loss` is each sample's, [N], with a graph: the step descends its mean, and a part of a batch
    contributes its sum over the size of the whole. `clean` and `robust` (bool [N]) mark the samples
    classified correctly before the attack and on their adversarial sample, None where the method
    does not know.
    """

    loss: Tensor
    clean: Tensor | None = None
    robust: Tensor | None = None


class Method:
    """Base of the training methods.

    Args:
        config: of the run.
        model: the bare network, which is attacked.
        memory: the radius of each training sample.

    Attributes:
        radii: whether samples have radii ("none" for clean training), and whether each has its own
            ("adaptive") or all have the same ("fixed").
        counts_clean, counts_robust: whether outcomes say which samples are classified correctly.
    """

    radii: ClassVar[Literal["none", "fixed", "adaptive"]] = "fixed"
    counts_clean: ClassVar[bool] = True
    counts_robust: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        self.config = config
        self.memory = memory
        self.attack = make_attack(config.attack, model)

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        """The radius of every sample before the first step, on the [0, 1] scale."""
        return config.attack.eps

    def prepare(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, seed: int) -> Batch:
        """Make what is trained on, with the weights standing still, and update the radii.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0.
            seed: of all that this step draws.
        """
        raise NotImplementedError

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        """The loss of a prepared batch under the network in training mode."""
        raise NotImplementedError


def right(logits: Tensor, y: Tensor) -> Tensor:
    """bool [N], which samples are classified correctly."""
    return logits.argmax(dim=1) == y
