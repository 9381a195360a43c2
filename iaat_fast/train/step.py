"""One training step of each method: Algorithm 1 of Balaji et al. 2019, and its two baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast import attacks
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import AttackConfig, TrainConfig
from iaat_fast.train.ranks import ALONE, Ranks
from iaat_fast.train.update import Update


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the network is trained on in one step.

    `x` is [N, C, H, W] on [0, 1]. `correct` (bool [N]) marks S+, the samples classified correctly
    before the attack, and is None where the method does not ask. `attacked` says whether x holds
    adversarial samples at all.
    """

    x: Tensor
    correct: Tensor | None
    attacked: bool


def make_attack(config: AttackConfig, model: nn.Module) -> attacks.PGD:
    """The PGD attack of the training step."""
    alpha = config.alpha
    step = attacks.scaled_step(config.steps, alpha) if config.alpha_rule == "scaled" else alpha
    return attacks.PGD(
        model,
        eps=config.eps,
        alpha=step,
        steps=config.steps,
        clamp_start=config.clamp_start,
        bn=config.bn,
        precision=config.precision,
        engine=config.engine,
    )


def make_memory(config: TrainConfig, size: int, device: torch.device) -> EpsilonMemory:
    """The radii of `size` samples before the first step.

    Zero for iaat (what a run without warm-up starts from) and clean; the fixed radius for adv.
    """
    eps = config.epsilon
    return EpsilonMemory(
        size,
        eps.gamma,
        eps.beta,
        init=config.attack.eps if config.method == "adv" else 0.0,
        eps_min=eps.eps_min,
        strategy=eps.strategy,
        final=eps.final,
        clamp=eps.clamp,
        misclassified=eps.misclassified,
        device=device,
    )


class TrainingStep:
    """One update of the weights (and, for iaat, of the radii) from a batch.

    On several ranks each takes its slice of the batch; radii and totals are those of the whole one
    on all of them afterwards. `last` holds the sample numbers, labels and logits of the micro-batches
    of the last step. `totals` [3] float64 on the device sums, over the steps since it was last zeroed, the loss of
    each sample, the samples classified correctly before the attack, and those still classified
    correctly, in the training forward, on their adversarial sample. They stay on the device:
    reading them each step would make the host wait for a GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        memory: EpsilonMemory,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.model = model
        self.memory = memory
        self.ranks = ranks
        self.update = Update(model, optimizer, ranks=ranks, accumulate=config.optim.accumulate)
        self.attack = make_attack(config.attack, model)
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self.last: list[tuple[Tensor, Tensor, Tensor]] = []
        self._make = {"clean": self._clean, "adv": self._adversarial, "iaat": self._adaptive}[
            config.method
        ]

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        *,
        epoch: int,
        seed: int,
        whole: Tensor | None = None,
    ) -> Tensor:
        """Train on one batch.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0; the warm-up lasts while it is below warmup_epochs.
            seed: seed of the attacks of this step.
            whole: positions of the global batch, of which `index` is this rank's slice.

        Returns:
            The mean cross-entropy of the batch (of a slice, its part in it), a scalar on the device.
        """
        whole = index if whole is None else whole
        counts = torch.zeros_like(self.totals)
        mean = torch.zeros((), device=self.totals.device)
        self.last = []
        self.update.begin()
        for rows in self.update.micro_batches(len(index)):
            share = len(index[rows]) / len(whole)
            batch = self._make(x[rows], y[rows], index[rows], epoch, seed)
            self.model.train()
            logits = self.update.network(batch.x)
            loss = F.cross_entropy(logits, y[rows])
            self.update.backward(loss, share=share)
            mean += loss.detach() * share
            counts += self._counts(loss.detach(), logits.detach(), y[rows], batch)
            self.last.append((index[rows], y[rows], logits.detach()))
        if not len(index):
            self.model.train()
            self.update.join(x)
        self.update.step()
        self._exchange(index, whole, counts)
        self.totals += counts
        return mean

    def _exchange(self, index: Tensor, whole: Tensor, counts: Tensor) -> None:
        """Give every rank the radii of the whole batch and the sum of the counts.

        One message of the batch's size: every rank knows the order, so none sends numbers, and the
        others' places hold zeros, to which a radius adds up exactly.
        """
        if self.ranks.count == 1:
            return
        message = torch.zeros(len(whole) + len(counts), dtype=torch.float64, device=counts.device)
        start = self.ranks.start(len(whole))
        message[start : start + len(index)] = self.memory.values[index].double()
        message[len(whole) :] = counts
        self.ranks.reduce(message)
        self.memory.values[whole] = message[: len(whole)].float()
        counts.copy_(message[len(whole) :])

    def _clean(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, seed: int) -> Batch:
        return Batch(x=x, correct=None, attacked=False)

    def _adversarial(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, seed: int) -> Batch:
        """Madry et al. 2018: every sample at the fixed radius, misclassified or not."""
        x_adv = self.attack(x, y, index=index, seed=seed)
        return Batch(x=x_adv, correct=None, attacked=True)

    def _adaptive(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, seed: int) -> Batch:
        """Algorithm 1, lines 3 to 10."""
        config = self.config.epsilon
        if epoch < config.warmup_epochs:
            correct = self.attack.logits(x).argmax(dim=1) == y
            eps = self.memory.warm_up(index, config.eps_w, correct=correct, rule=config.warmup_rule)
            x_adv = self.attack(x, y, eps=eps, index=index, seed=seed)
        else:
            x_adv = self.memory.select(self.attack, x, y, index, judge=True, seed=seed).x_adv
            assert self.memory.correct is not None
            correct = self.memory.correct
        if config.misclassified_input == "clean":
            x_adv = torch.where(correct.view(-1, *[1] * (x.dim() - 1)), x_adv, x)
        return Batch(x=x_adv, correct=correct, attacked=True)

    def _counts(self, loss: Tensor, logits: Tensor, y: Tensor, batch: Batch) -> Tensor:
        """What a micro-batch adds to the totals."""
        fits = logits.argmax(dim=1) == y
        # Clean training has no forward before the training forward; that one is on clean images.
        clean = batch.correct if batch.attacked else fits
        robust = fits if batch.correct is None else fits & batch.correct
        counts = torch.zeros_like(self.totals)
        counts[0] = loss * len(y)
        if clean is not None:
            counts[1] = clean.sum()
        if batch.attacked:
            counts[2] = robust.sum()
        return counts
