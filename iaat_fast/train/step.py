"""One step of training: what the method makes of a batch, and the update of the weights from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.averaging import update
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods import METHODS, Outcome


def make_memory(config: TrainConfig, size: int, device: torch.device) -> EpsilonMemory:
    """The radii of `size` samples before the first step."""
    eps = config.epsilon
    return EpsilonMemory(
        size,
        eps.gamma,
        eps.beta,
        init=METHODS[config.method].first_radius(config),
        eps_min=eps.eps_min,
        strategy=eps.strategy,
        final=eps.final,
        clamp=eps.clamp,
        misclassified=eps.misclassified,
        device=device,
    )


class TrainingStep:
    """One update of the weights (and, for adaptive methods, of the radii) from a batch.

    `totals` [3] float64 on the device sums, over the steps since it was last zeroed, the loss of
    each sample, the samples classified correctly before the attack, and those still classified
    correctly, in the training forward, on their adversarial sample. They stay on the device:
    reading them each step would make the host wait for a GPU.

    Args:
        average: takes an average of the weights after each update, None for none.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        memory: EpsilonMemory,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        average: AveragedModel | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = average
        self.method = METHODS[config.method](config, model, memory)
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, seed: int) -> Tensor:
        """Train on one batch.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0; the warm-up lasts while it is below warmup_epochs.
            seed: of all that this step draws.

        Returns:
            The mean loss of the batch, a scalar on the device.
        """
        batch = self.method.prepare(x, y, index, epoch=epoch, seed=seed)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self.method.outcome(self.model, batch)
        loss = outcome.loss.mean()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            update(self.average, self.model)
        self._count(outcome)
        return loss.detach()

    def _count(self, outcome: Outcome) -> None:
        self.totals[0] += outcome.loss.detach().sum(dtype=torch.float64)
        for place, verdicts in ((1, outcome.clean), (2, outcome.robust)):
            if verdicts is not None:
                self.totals[place] += verdicts.sum()
