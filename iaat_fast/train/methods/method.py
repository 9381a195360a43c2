"""The base of the training methods: the two halves of a step, `prepare` and `outcome`, and what they exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.methods import reads
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack
from iaat_fast.train.methods.passes import Fooled, Stage

Forward = Callable[[Tensor], Tensor]
"""The network in training mode, images [N, C, H, W] to logits [N, classes]."""

Drawn = Mapping[str, Tensor]
"""The random draws of a step, by name: int64 or float64, which reach a GPU in one copy (`seeds.Packed`)."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step knows apart from its batch: its epoch, its random draws, and where it notes bad values."""

    epoch: int
    drawn: Drawn
    findings: Findings | None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What `prepare` returns and `outcome` takes.

    `x` are the clean images float32 [N, C, H, W] on [0, 1], `y` their labels int64 [N]. `x_adv`, like
    x, are the adversarial images, None for a method without an attack. `correct` (bool [N]) marks the
    samples classified correctly before the attack, None if the method does not measure it.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor | None = None
    correct: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of the training forward.

    `loss` is [N], one value per sample, with its graph; the step descends its mean over the global
    batch. `clean` and `robust` (bool [N]) mark the samples classified correctly before the attack and
    on their adversarial image, None if the method does not measure it.
    """

    loss: Tensor
    clean: Tensor | None = None
    robust: Tensor | None = None


class Method:
    """Base of the training methods. (Facts about a method that need no class are in `iaat_fast.methods`.)

    Args:
        config: of the run.
        model: the bare network, which is attacked.
        memory: the radius of each training sample.

    Raises:
        ValueError: attack.targeted with a method whose attack cannot be targeted.

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
        noisy = reads(config.method, "attack.noise")
        self.attack = make_attack(config.attack, model, noisy=noisy)

    @classmethod
    def first_radius(cls, config: TrainConfig) -> float:
        """The radius of every sample before the first step, on the [0, 1] scale."""
        return config.attack.eps

    def draw(self, seed: int, rows: int) -> dict[str, Tensor]:
        """The random draws, or seeds of them, of the step with this seed for `rows` samples, on the CPU.

        "noise", int64 [1], is the seed of the attack's noise.
        """
        return {"noise": torch.tensor([seed])}

    @classmethod
    def phase(cls, config: TrainConfig, epoch: int) -> str:
        """The phase of the training that an epoch is in; `prepare` depends on the epoch only through it."""
        return "every epoch"

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        """The passes of the network in a step of a phase, in order; the plan estimates time and memory from them.

        Raises:
            ValueError: a method that does not list its passes, or a strategy "auto".
        """
        raise ValueError(f"method: {config.method!r}, expected one whose passes are counted")

    def host_reads(self, epoch: int) -> str | None:
        """What a step of this epoch reads on the host, so that it cannot be captured; None: it reads nothing."""
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
        """Make the images to train on, at fixed weights, and update the radii in the memory.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0.
            seed: of all that this step draws; or the draws themselves (see `draw`) on the device of x.
            findings: notes bad values, such as NaN, on the device, to be raised later; None: they are raised here.
        """
        if isinstance(seed, int):
            drawn = self.draw(seed, len(x))
            seed = {name: values.to(x.device) for name, values in drawn.items()}
        return self._prepare(x, y, index, StepContext(epoch=epoch, drawn=seed, findings=findings))

    def _prepare(self, x: Tensor, y: Tensor, index: Tensor, step: StepContext) -> Batch:
        raise NotImplementedError

    def outcome(self, forward: Forward, batch: Batch) -> Outcome:
        """The loss of a prepared batch under the network in training mode."""
        raise NotImplementedError


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """bool [N], which samples are classified correctly."""
    return logits.argmax(dim=1) == y
