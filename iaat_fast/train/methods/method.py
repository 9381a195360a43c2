"""What all training methods share: the two halves of a step, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack
from iaat_fast.train.methods.passes import Fooled, Stage

Forward = Callable[[Tensor], Tensor]
"""The network in training mode, images [N, C, H, W] to logits [N, classes]."""

Drawn = Mapping[str, Tensor]
"""What a step draws, by name: int64 or float64, which reach a GPU in one copy."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a step has besides its batch: its epoch, its random draws, where it notes wrong values."""

    epoch: int
    drawn: Drawn
    findings: Findings | None


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
    """Base of the training methods; see the rows of `iaat_fast.methods` for what is known without their classes.

    Args:
        config: of the run.
        model: the bare network, which is attacked.
        memory: the radius of each training sample.

    Raises:
        ValueError: attack.targeted with a method that cannot aim.

    Attributes:
        aims: whether its attack may aim at random classes (attack.targeted).
        counts_clean, counts_robust: whether outcomes say which samples are classified correctly.
    """

    aims: ClassVar[bool] = True
    counts_clean: ClassVar[bool] = True
    counts_robust: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        if config.attack.targeted != "no" and not self.aims:
            raise ValueError(
                f"attack.targeted: {config.attack.targeted!r}, expected 'no' (--targeted no) with "
                f"method {config.method!r}, whose attack has no target"
            )
        self.config = config
        self.memory = memory
        self.attack = make_attack(config.attack, model)

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        """The radius of every sample before the first step, on the [0, 1] scale."""
        return config.attack.eps

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        """What the step with this seed draws for `rows` samples, or draws it from, on the CPU.

        "noise", int64 [1], is the seed of the attack's.
        """
        return {"noise": torch.tensor([seed])}

    @classmethod
    def phase(cls, config: TrainConfig, epoch: int) -> str:
        """The part of the training that an epoch is in: all that `prepare` may make of its index."""
        return "every epoch"

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        """What a step of a phase takes of the network, in its order.

        Raises:
            ValueError: passes that are not counted, or a strategy that is left to the hardware.
        """
        raise ValueError(f"method: {config.method!r}, expected one whose passes are counted")

    def host_reads(self, epoch: int) -> str | None:
        """What a step of this epoch reads on the host, so that it cannot be captured; None for nothing."""
        return None

    def prepare(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        epoch: int,
        seed: int | Drawn,
        findings: Findings | None = None,
    ) -> Batch:
        """Make what is trained on, with the weights standing still, and update the radii.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0.
            seed: of all that this step draws; or what it draws, see `draw`, on the device of x.
            findings: where what is wrong with values is noted, to be raised later; None: raised here.
        """
        if isinstance(seed, int):
            drawn = self.draw(seed, len(x))
            seed = {name: values.to(x.device) for name, values in drawn.items()}
        return self._prepare(x, y, index, Moment(epoch=epoch, drawn=seed, findings=findings))

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, at: Moment) -> Batch:
        raise NotImplementedError

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        """The loss of a prepared batch under the network in training mode."""
        raise NotImplementedError


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """bool [N], which samples are classified correctly."""
    return logits.argmax(dim=1) == y
