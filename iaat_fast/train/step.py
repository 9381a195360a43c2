"""One training step of each method: Algorithm 1 of Balaji et al. 2019, and its two baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iaat_fast import attacks
from iaat_fast.attacks.call import StepSize
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.amp import MixedPrecision
from iaat_fast.train.config import AttackConfig, TrainConfig


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
    return attacks.PGD(
        model,
        eps=config.eps,
        alpha=_step_size(config, config.steps),
        steps=config.steps,
        clamp_start=config.clamp_start,
        targeted="random" if config.targeted == "random" else False,
        bn=config.bn,
        precision=config.precision,
        engine=config.engine,
    )


def make_selector(config: TrainConfig, attack: attacks.PGD) -> attacks.PGD:
    """The attack on the candidates of Algorithm 2: `attack`, or the same of fewer steps."""
    steps = config.epsilon.selection_steps
    if steps is None:
        return attack
    return attack.with_steps(steps, _step_size(config.attack, steps))


def _step_size(config: AttackConfig, steps: int) -> StepSize:
    return (
        attacks.scaled_step(steps, config.alpha) if config.alpha_rule == "scaled" else config.alpha
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

    `totals` [4] float64 on the device sums, over the steps since it was last zeroed, the loss of
    each sample, the samples classified correctly before the attack, those still classified
    correctly, in the training forward, on their adversarial sample, and all samples. They stay on the device:
    reading them each step would make the host wait for a GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        memory: EpsilonMemory,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model = model
        self.memory = memory
        self.optimizer = optimizer
        self.amp = MixedPrecision(config.optim.amp, device)
        self.attack = make_attack(config.attack, model)
        self.selector = make_selector(config, self.attack)
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)
        self._make = {"clean": self._clean, "adv": self._adversarial, "iaat": self._adaptive}[
            config.method
        ]

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, *, epoch: int, seed: int) -> Tensor:
        """Train on one batch.

        Args:
            x: images [N, C, H, W] float32 on [0, 1].
            y: labels [N] int64.
            index: positions [N] int64 of the samples in the training set.
            epoch: epoch index from 0; the warm-up lasts while it is below warmup_epochs.
            seed: seed of the attacks of this step.

        Returns:
            The mean cross-entropy of the batch, a scalar on the device.
        """
        batch = self._make(x, y, index, epoch, seed)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.amp.autocast():
            logits = self.model(batch.x)
        loss = F.cross_entropy(self.amp.wide(logits), y)
        self.amp.backward(loss)
        self.amp.step(self.optimizer)
        self._count(loss.detach(), logits.detach(), y, batch)
        return loss.detach()

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
            x_adv = self.memory.select(
                self.selector, x, y, index, judge=True, seed=seed, final_attack=self.attack
            ).x_adv
            assert self.memory.correct is not None
            correct = self.memory.correct
        if config.misclassified_input == "clean":
            x_adv = torch.where(correct.view(-1, *[1] * (x.dim() - 1)), x_adv, x)
        return Batch(x=x_adv, correct=correct, attacked=True)

    def _count(self, loss: Tensor, logits: Tensor, y: Tensor, batch: Batch) -> None:
        fits = logits.argmax(dim=1) == y
        # Clean training has no forward before the training forward; that one is on clean images.
        clean = batch.correct if batch.attacked else fits
        robust = fits if batch.correct is None else fits & batch.correct
        self.totals[0] += loss * len(y)
        if clean is not None:
            self.totals[1] += clean.sum()
        if batch.attacked:
            self.totals[2] += robust.sum()
        self.totals[3] += len(y)
