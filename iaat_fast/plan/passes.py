"""How many passes of the network one training step takes, per image: Algorithms 1 and 2 counted out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from iaat_fast.attacks.active_set import bucket
from iaat_fast.train.config import TrainConfig

Kind = Literal["forward", "gradient", "update"]
"""A pass: a forward without gradient, of the live network; a forward and the gradient of the images, of the network
that the attack sees; or the training forward and the gradient of the weights, of the live network."""

Phase = Literal["warm-up", "adaptive", "every epoch"]
# Their loss is of clean and of adversarial images.
_TWO_LOSSES = ("mixup", "trades", "mart", "mma")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a step: `passes` of one kind for each image of the batch.

    depends_on_samples: whether they rest on the shares of `Fooled`.
    """

    name: str
    kind: Kind
    passes: float
    depends_on_samples: bool = False


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
            if not 0 <= value <= 1:
                raise ValueError(f"--{name}: {value:g}, expected a share in [0, 1]")
        if self.twice > self.once:
            raise ValueError(
                f"--fooled-twice: {self.twice:g}, expected at most --fooled, {self.once:g}"
            )

    def padded(self, batch: int) -> Fooled:
        """The shares that a GPU attacks of batches of `batch` images: the fooled are filled up to one of few sizes.

        Means over batches whose samples fall independently, each with the probability of these shares.
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


def phases(config: TrainConfig) -> dict[Phase, int]:
    """The epochs of each kind of step."""
    epochs = config.optim.epochs
    if config.method != "iaat":
        return {"every epoch": epochs}
    warm_up = min(config.epsilon.warmup_epochs, epochs)
    counts: dict[Phase, int] = {"warm-up": warm_up, "adaptive": epochs - warm_up}
    return {phase: count for phase, count in counts.items() if count}


def stages(config: TrainConfig, phase: Phase, fooled: Fooled) -> tuple[Stage, ...]:
    """What a step of `phase` does, in its order.

    Raises:
        ValueError: a method whose passes are not counted here, or a strategy that is left to the hardware.
    """
    losses = 2 if config.method in _TWO_LOSSES else 1
    update = Stage(name="update of the weights", kind="update", passes=losses)
    attack = Stage(name="training attack", kind="gradient", passes=config.attack.steps)
    judged = Stage(name="clean verdicts", kind="forward", passes=1)
    match config.method:
        case "clean":
            return (update,)
        case "adv" | "mixup" | "mart":
            return attack, update
        case "trades":  # whose attack leads away from the clean predictions
            return Stage(name="clean predictions", kind="forward", passes=1), attack, update
        case "mma":
            halvings = config.baseline.mma_bisections
            bisection = Stage(name="bisection of the margins", kind="forward", passes=halvings)
            return judged, attack, bisection, update
        case "iaat" if phase == "warm-up":
            return judged, attack, update
        case "iaat":
            return *_selection(config, fooled), *_final(config, attack, fooled), update
    raise ValueError(f"method: {config.method!r}, expected one whose passes are counted here")


def _selection(config: TrainConfig, fooled: Fooled) -> tuple[Stage, ...]:
    """Algorithm 2: the attacks on the candidates, and the verdicts on them and on the clean images."""
    steps = _selection_steps(config)
    if config.epsilon.strategy == "auto":
        raise ValueError("epsilon.strategy is 'auto': expected what it is on the hardware planned")
    attacked = {
        "lazy": 1 + fooled.once,
        "batched": candidates_at_once(config),
        "sequential": 2,
    }[config.epsilon.strategy]
    parts: tuple[tuple[str, Kind, float], ...] = (
        ("attacks of the selection", "gradient", attacked * steps),
        ("verdicts of the selection", "forward", attacked + 1),
    )
    is_lazy = config.epsilon.strategy == "lazy"
    return tuple(
        Stage(name=name, kind=kind, passes=passes, depends_on_samples=is_lazy)
        for name, kind, passes in parts
    )


def candidates_at_once(config: TrainConfig) -> int:
    """Copies of the batch in one attack of Algorithm 2; the third candidate is attacked for its images alone."""
    if config.epsilon.strategy != "batched":
        return 1
    return 3 if config.epsilon.final == "reuse" else 2


def _final(config: TrainConfig, attack: Stage, fooled: Fooled) -> tuple[Stage, ...]:
    """Algorithm 1, line 8, or what reusing the candidates still attacks."""
    if config.epsilon.final == "exact":
        return (attack,)
    if config.epsilon.strategy == "batched":
        return ()
    passes = fooled.twice * _selection_steps(config)
    name = "attack at prev - gamma"
    return (Stage(name=name, kind="gradient", passes=passes, depends_on_samples=True),)


def _selection_steps(config: TrainConfig) -> int:
    steps = config.epsilon.selection_steps
    return config.attack.steps if steps is None else steps
