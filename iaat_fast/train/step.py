"""One step of training: what the method makes of a batch, and the update of the weights from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from iaat_fast.attacks.findings import Findings
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.amp import MixedPrecision
from iaat_fast.train.averaging import count, update
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.hardware import resolved
from iaat_fast.train.methods import METHODS, Drawn, Outcome
from iaat_fast.train.packing import Packed
from iaat_fast.train.ranks import ALONE, Ranks
from iaat_fast.train.update import Update


def make_memory(config: TrainConfig, size: int, device: torch.device) -> EpsilonMemory:
    """The radii of `size` samples before the first step."""
    config = resolved(config, device)
    eps = config.epsilon
    return EpsilonMemory(
        size,
        eps.gamma,
        eps.beta,
        init=METHODS[config.method].first_radius(config),
        eps_min=eps.eps_min,
        eps_min_bounds=eps.eps_min_bounds,
        strategy=eps.strategy,
        final=eps.final,
        clamp=eps.clamp,
        misclassified=eps.misclassified,
        device=device,
    )


class TrainingStep:
    """One update of the weights (and, for adaptive methods, of the radii) from a batch.

    On several ranks each takes its slice of the batch; radii and totals are those of the whole one
    on all of them afterwards. `last` holds, for each micro-batch of the last step, the samples'
    numbers and losses. `totals` [4] float64 on the device sums, over the steps since it was last
    zeroed, the loss of each sample, the samples classified correctly before the attack, those still
    classified correctly, in the training forward, on their adversarial sample, and all samples. They
    stay on the device:
    reading them each step would make the host wait for a GPU.

    Args:
        average: takes an average of the weights after each update, None for none.
        ranks: those that batches are spread over.
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
        ranks: Ranks = ALONE,
    ) -> None:
        config = resolved(config, device)
        self.model = model
        self.memory = memory
        self.average = average
        self.ranks = ranks
        self.update = Update(
            model,
            optimizer,
            ranks=ranks,
            accumulate=config.optim.accumulate,
            amp=MixedPrecision(config.optim.amp, device),
        )
        self.method = METHODS[config.method](config, model, memory)
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)
        self.last: list[tuple[Tensor, Tensor]] = []

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        epoch: int,
        seed: int,
        whole: Tensor | None = None,
        present: int | None = None,
        findings: Findings | None = None,
    ) -> Tensor:
        """Train on one batch.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0; the warm-up lasts while it is below warmup_epochs.
            seed: of all that this step draws.
            whole: positions of the global batch, of which `index` is this rank's slice, or what
                could be decoded of it.
            present: images of the global batch that could be decoded, on all ranks; all by default.
            findings: where what is wrong with values is noted, to be raised later; None: raised here.

        Returns:
            The mean loss of the batch (of a slice, its part in it), a scalar on the device.
        """
        packed = Packed(self.draws(seed, len(index)))
        mean = self.launch(
            x,
            y,
            index,
            packed.unpacked(packed.to(self.totals.device)),
            epoch=epoch,
            whole=whole,
            present=present,
            findings=findings,
        )
        self.count()
        return mean

    def draws(self, seed: int, rows: int) -> list[Drawn]:
        """What the step with this seed draws for each micro-batch of `rows` images, on the CPU."""
        return [self.method.draw(seed, part.stop - part.start) for part in self.update.parts(rows)]

    def count(self) -> None:
        """What the host notes of a step that was launched."""
        if self.average is not None:
            count(self.average, self.model)

    def launch(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        draws: Sequence[Drawn],
        *,
        epoch: int,
        whole: Tensor | None = None,
        present: int | None = None,
        findings: Findings | None = None,
    ) -> Tensor:
        """The device's part of a step, as `__call__`, with what it draws on the device."""
        whole = index if whole is None else whole
        present = len(whole) if present is None else present
        counts = torch.zeros_like(self.totals)
        mean = torch.zeros((), device=self.totals.device)
        self.last = []
        self.update.begin()
        for rows, drawn in zip(self.update.micro_batches(len(index)), draws, strict=True):
            batch = self.method.prepare(
                x[rows], y[rows], index[rows], epoch=epoch, seed=drawn, findings=findings
            )
            self.model.train()
            outcome = self.method.outcome(self.update.forward, batch)
            loss, share = outcome.loss.mean(), len(index[rows]) / present
            self.update.backward(loss, share=share)
            mean += loss.detach() * share
            counts += self._counts(outcome)
            self.last.append((index[rows], outcome.loss.detach()))
        if not len(index):
            self.model.train()
            self.update.join(x)
        self.update.step()
        if self.average is not None:
            update(self.average, self.model)
        self.exchange(whole, counts)
        self.totals += counts
        return mean

    def exchange(self, whole: Tensor, counts: Tensor) -> None:
        """Give every rank the radii of the whole batch and the sum of the counts.

        One message of the batch's size: every rank knows the order, so none sends numbers, and the
        others' places hold zeros, to which a radius adds up exactly.
        """
        if self.ranks.count == 1:
            return
        message = torch.zeros(len(whole) + len(counts), dtype=torch.float64, device=counts.device)
        start, mine = self.ranks.start(len(whole)), self.ranks.mine(whole)
        message[start : start + len(mine)] = self.memory.values[mine].double()
        message[len(whole) :] = counts
        self.ranks.reduce(message)
        self.memory.values[whole] = message[: len(whole)].float()
        counts.copy_(message[len(whole) :])

    def _counts(self, outcome: Outcome) -> Tensor:
        """What a micro-batch adds to the totals."""
        counts = torch.zeros_like(self.totals)
        counts[0] = outcome.loss.detach().sum(dtype=torch.float64)
        for place, verdicts in ((1, outcome.clean), (2, outcome.robust)):
            if verdicts is not None:
                counts[place] = verdicts.sum()
        counts[3].fill_(len(outcome.loss))  # a number assigned is copied from the host, which waits
        return counts
