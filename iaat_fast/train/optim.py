"""SGD and its learning rate, mixed precision, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from iaat_fast.attacks.inputs import logits_in
from iaat_fast.methods import reads
from iaat_fast.train.config import OptimConfig, TrainConfig

_RISE = 0.4
"""Share of a run in which the rate of one-cycle rises."""


def learning_rate(config: OptimConfig, epoch: int, within: float = 0.0) -> float:
    """The learning rate at a point of a run.

    Args:
        config: the schedule.
        epoch: index of the epoch, from 0.
        within: share of the epoch's steps done, in [0, 1).

    Source: the step decay of the paper's Tables 7 and 8; Goyal et al. 2017, Section 2.2, for the scaling and the
    warm-up, which starts from the rate of the reference batch and grows by the same amount at each step; Loshchilov
    and Hutter 2017, Equation 5 without restarts, for cosine; Smith and Topin 2018 for one-cycle, with the linear
    pieces that Rice et al. 2020, "Overfitting in adversarially robust deep learning", Section 3.2, compare.
    """
    rate = config.lr
    if config.lr_reference_batch is not None:
        scale = config.batch_size / config.lr_reference_batch
        if scale > 1 and epoch < config.lr_warmup_epochs:
            scale = 1 + (scale - 1) * (epoch + within) / config.lr_warmup_epochs
        rate *= scale
    if config.lr_schedule == "step":
        return rate * config.decay_factor ** sum(epoch >= start for start in config.decay_epochs)
    done = (epoch + within) / config.epochs
    if config.lr_schedule == "cosine":
        return rate * (1 + math.cos(math.pi * done)) / 2
    return rate * min(done / _RISE, (1 - done) / (1 - _RISE))


def never_reached(config: TrainConfig) -> list[str]:
    """Warnings, a line each: what the schedule plans for epochs after the run's last one."""
    optim, epochs, found = config.optim, config.optim.epochs, []
    warmup = config.epsilon.warmup_epochs
    if reads(config.method, "epsilon.warmup_epochs") and warmup >= epochs:
        found.append(
            f"epsilon.warmup_epochs is {warmup} and optim.epochs {epochs}: the warm-up never ends, no radius adapts"
        )
    waits = config.baseline.awp_warmup_epochs
    if reads(config.method, "baseline.awp_gamma") and waits >= epochs:
        found.append(
            f"baseline.awp_warmup_epochs is {waits} and optim.epochs {epochs}: the weights are never perturbed"
        )
    beyond = [epoch for epoch in optim.decay_epochs if epoch >= epochs]
    if beyond and optim.lr_schedule == "step":
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


def make_optimizer(model: nn.Module, config: OptimConfig, *, on_device: bool) -> torch.optim.SGD:
    """SGD with the momentum and weight decay of `config`.

    Args:
        model: its parameters are updated.
        config: the start of the learning rate, momentum and weight decay.
        on_device: make the learning rate a tensor that the fused update reads on the device, so that a captured step
            follows it; torch's other updates read it on the host. Momentum then starts as zeros, which give the same
            first step. Without zeros the fused update has a flag for its first step, which a graph would repeat in
            every step, and it refuses weights whose first gradients come in different steps.
    """
    lr: float | Tensor = config.lr
    if on_device:
        device = next(model.parameters()).device
        lr = torch.tensor(config.lr, dtype=torch.float32, device=device)  # as the update reads it
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True if on_device else None,
    )
    _start_momentum(optimizer)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set the momentum of the fused update's weights to zeros where there is none yet."""
    for group in optimizer.param_groups:
        if group.get("fused") and group["momentum"]:
            for weight in group["params"]:
                optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))


def rate_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a captured step would follow the learning rate."""
    return all(
        isinstance(group["lr"], Tensor) and group.get("fused") for group in optimizer.param_groups
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step; the host does not wait for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of the optimizer, always in the form with the learning rate on the host."""
    state = optimizer.state_dict()
    groups = [
        {**group, "lr": float(group["lr"]), "fused": None}
        if isinstance(group["lr"], Tensor)
        else group
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimizer_state` has saved; the learning rate stays on the host or the device, as it is now."""
    kept = [{name: group.get(name) for name in ("lr", "fused")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        rate = group["lr"]
        group.update(own)
        if isinstance(own["lr"], Tensor):
            own["lr"].fill_(rate)
        else:
            group["lr"] = rate
    _start_momentum(optimizer)


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of the weights of `model`, by `decay` per step; None for a decay of 0.

    It starts as the weights after the first step. BatchNorm's running statistics are averaged like
    the weights, because those of the live network belong to other weights; integers are copied.
    """
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module) -> None:
    """Update the average by the weights and buffers of `model` after a step, in place.

    `count_update` is the host's part. torch's own `update_parameters` does both, but copies its count from the CPU to
    the device, which cannot be captured.
    """
    own, live = _tensors(average.module), _tensors(model)
    assert average.multi_avg_fn is not None
    for dtype in {tensor.dtype for tensor in own}:
        averaged = [tensor for tensor in own if tensor.dtype is dtype]
        theirs = [tensor for tensor in live if tensor.dtype is dtype]
        if dtype.is_floating_point:
            average.multi_avg_fn(averaged, theirs, average.n_averaged)
        else:
            torch._foreach_copy_(averaged, theirs)


@torch.no_grad()
def count_update(average: AveragedModel, model: nn.Module) -> None:
    """Count an update of the average; the first one makes it equal to `model`."""
    if average.n_averaged == 0:
        torch._foreach_copy_(_tensors(average.module), _tensors(model))
    average.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Forward and backward under autocast; weights, optimizer and loss stay in float32. `amp` "off" changes nothing.

        amp.backward(cross_entropy(amp.forward(model, x), y))
        amp.step(optimizer)

    In fp16 the loss is scaled, by a factor that falls when gradients overflow (that step is left out) and rises when
    they have not for a while.

    Args:
        amp: "off", "bf16" or "fp16".
        device: of the model.

    Source: Micikevicius et al. 2018, arXiv 1710.03740.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        self._device, self._dtype = device.type, _DTYPES.get(amp)
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled (fp16): the host then reads after every backward whether gradients overflowed."""
        return self._scaler.is_enabled()

    def forward(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The logits of `model` under autocast, as float32; with amp "off", in the model's own dtype."""
        if self._dtype is None:
            logits: Tensor = logits_in(model(x))
            return logits
        # A forward reads each weight once, so a cache of cast weights saves nothing. In a captured step it would hold
        # what was cast during the capture, not during the replay.
        with torch.autocast(self._device, self._dtype, cache_enabled=False):
            wide: Tensor = logits_in(model(x)).float()
            return wide

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`, scaled."""
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scaling, and take the step unless a gradient has overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The state of the loss scaling as plain values; empty if nothing is scaled."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the scale from a checkpoint."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
