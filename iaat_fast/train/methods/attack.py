"""The attack of the training step, and its random starts: noisier ones, and that of TRADES and MART."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast import attacks, ops
from iaat_fast.attacks.call import Call
from iaat_fast.attacks.options import StepSize
from iaat_fast.attacks.pgd import Run
from iaat_fast.train.config import AttackConfig, TrainConfig
from iaat_fast.train.seeds import Stream, stream_seed

# The largest float32 below 1: it keeps the noise finite, within 5.4 standard deviations.
_ALMOST_ONE = 1 - 2**-24


class NoisyPGD(attacks.PGD):
    """PGD from a start of more noise, or less, than its ball holds; and without a projection on the ball, if asked for.

    With one step it is the attack of de Jorge et al. 2022 (N-FGSM), and of Wong et al. 2020 (see `nfgsm.py`).

    Attributes:
        noise: the start is uniform within noise * eps of x, whatever the sample's radius eps.
        project: whether steps end within eps of x. False: only within [lo, hi]; a sample of radius 0 stays at x.
    """

    noise: float = 1.0
    project: bool = True

    def _start(self, call: Call, restart: int) -> Tensor:
        return super()._start(dataclasses.replace(call, eps=self.noise * call.eps), restart)

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        run = super()._begin(call, x_adv, rows)
        # A ball of radius hi - lo holds the whole box.
        box = (self._hi - self._lo) * run.eps.sign()
        return run if self.project else dataclasses.replace(run, eps=box)


def make_attack(
    config: AttackConfig, model: nn.Module, *, noisy: bool = False, **changes: Any
) -> attacks.PGD:
    """The PGD attack of the training step; `changes` are arguments of `attacks.PGD`.

    noisy: as `noise` and `project` of the configuration say; otherwise they change nothing.
    """
    arguments = {**attack_arguments(config), **changes}
    if not noisy or (config.noise == 1 and config.project):
        return attacks.PGD(model, **arguments)
    attack = NoisyPGD(model, **arguments)
    attack.noise, attack.project = config.noise, config.project
    return attack


def attack_arguments(config: AttackConfig) -> dict[str, Any]:
    """The arguments of `attacks.PGD`, or a class on it, as the configuration has them."""
    return {
        "eps": config.eps,
        "alpha": _step_size(config, config.steps),
        "steps": config.steps,
        "clamp_start": config.clamp_start,
        "targeted": "random" if config.targeted == "random" else False,
        "bn": config.bn,
        "precision": config.precision,
        "engine": config.engine,
    }


def make_selector(config: TrainConfig, attack: attacks.PGD) -> attacks.PGD:
    """The attack on the candidates of Algorithm 2: `attack`, or the same with `epsilon.selection_steps` steps."""
    steps = config.epsilon.selection_steps
    if steps is None:
        return attack
    return attack.with_steps(steps, _step_size(config.attack, steps))


def _step_size(config: AttackConfig, steps: int) -> StepSize:
    if config.alpha_rule == "radius":
        return lambda eps: eps
    alpha = config.alpha
    return attacks.scaled_step(steps, alpha) if config.alpha_rule == "scaled" else alpha


def start_seed(seed: int) -> Tensor:
    """The seed of `gaussian_start` in the step with this seed, int64 [1]."""
    return torch.tensor([stream_seed(seed, Stream.START)])


def gaussian_start(
    x: Tensor, index: Tensor, seed: int | Tensor, *, clamp: bool, deviation: float = 0.001
) -> Tensor:
    """x + deviation * N(0, 1), float32 [N, C, H, W]: the start of the attack of TRADES and MART.

    The noise depends only on the seed and the sample's number, not on the batch: it is the uniform
    noise of the attacks, mapped by the inverse of the normal distribution function.

    Args:
        x: images float32 [N, C, H, W] on [0, 1].
        index: int64 [N], numbers of the samples.
        seed: of the step, or `start_seed` of it on the device of x.
        clamp: whether to clamp to [0, 1]; the released codes clamp only after the first step.
        deviation: standard deviation, on the [0, 1] scale.
    """
    own = seed if isinstance(seed, Tensor) else start_seed(seed).to(x.device)
    uniform = ops.random_start_linf(torch.zeros_like(x), _ALMOST_ONE, own, index, lo=-1.0, hi=1.0)
    start = x + deviation * math.sqrt(2) * torch.erfinv(uniform)
    return start.clamp(0.0, 1.0) if clamp else start
