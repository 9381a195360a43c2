"""The learning rate over a run: scaled with the batch, rising at first, then decaying; and what is never reached."""

from __future__ import annotations

from iaat_fast.method_fields import reads
from iaat_fast.train.config import OptimConfig, TrainConfig


def learning_rate(config: OptimConfig, epoch: int, within: float = 0.0) -> float:
    """The learning rate at a point of a run.

    Args:
        config: the schedule.
        epoch: index of the epoch, from 0.
        within: share of the epoch's steps done, in [0, 1).

    Source: the step decay of the paper's Tables 7 and 8; Goyal et al. 2017, Section 2.2, for the scaling and the
    warm-up, which starts from the rate of the reference batch and grows by the same amount at each step.
    """
    rate = config.lr
    if config.lr_reference_batch is not None:
        scale = config.batch_size / config.lr_reference_batch
        if scale > 1 and epoch < config.lr_warmup_epochs:
            scale = 1 + (scale - 1) * (epoch + within) / config.lr_warmup_epochs
        rate *= scale
    return rate * config.decay_factor ** sum(epoch >= start for start in config.decay_epochs)


def never_reached(config: TrainConfig) -> list[str]:
    """What the schedule of a run plans for epochs that the run has not, one line each."""
    optim, epochs, found = config.optim, config.optim.epochs, []
    warmup = config.epsilon.warmup_epochs
    if reads(config.method, "epsilon.warmup_epochs") and warmup >= epochs:
        found.append(
            f"epsilon.warmup_epochs is {warmup} and optim.epochs {epochs}: the warm-up never ends, no radius adapts"
        )
    if beyond := [epoch for epoch in optim.decay_epochs if epoch >= epochs]:
        listed = ", ".join(map(str, beyond))
        found.append(
            f"optim.decay_epochs has {listed} and optim.epochs is {epochs}: the learning rate does not decay there"
        )
    if optim.lr_warmup_epochs >= epochs:
        found.append(
            f"optim.lr_warmup_epochs is {optim.lr_warmup_epochs} and optim.epochs {epochs}: the learning rate never "
            "reaches its full value"
        )
    return found
