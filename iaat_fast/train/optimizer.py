"""SGD whose learning rate lies on the device where steps are captured, and its part of a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast.train.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig, *, on_device: bool) -> torch.optim.SGD:
    """SGD with the momentum and weight decay of `config`.

    Args:
        on_device: the learning rate is a tensor that the fused update reads on the device, so that a captured step
            follows it: the other updates of torch read a tensor on the host. Momentum then starts as zeros, of which
            the first step makes the gradient itself: without it, the fused update would have a flag for its first step,
            which a graph would keep raised, and would refuse a weight that gets its first gradient later than others.
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
    """Zeros for the fused update's weights that have no momentum yet."""
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
    """Let the next step take this learning rate; the host waits for nothing."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def to_checkpoint(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of the optimizer as it would be with a learning rate on the host."""
    state = optimizer.state_dict()
    groups = [
        {**group, "lr": float(group["lr"]), "fused": None}
        if isinstance(group["lr"], Tensor)
        else group
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def load_checkpoint(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over such a state dict, wherever it was saved; where the learning rate lies stays as it is here."""
    kept = [{name: group.get(name) for name in ("lr", "fused")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, mine in zip(optimizer.param_groups, kept, strict=True):
        rate = group["lr"]
        group.update(mine)
        if isinstance(mine["lr"], Tensor):
            mine["lr"].fill_(rate)
        else:
            group["lr"] = rate
    _start_momentum(optimizer)
