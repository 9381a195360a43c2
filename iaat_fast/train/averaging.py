"""The exponential moving average of the weights (Polyak averaging), kept beside the live ones."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """An average of `model` that forgets by `decay` each step; None for a decay of 0.

    It starts as the weights after the first step. BatchNorm's running statistics are averaged like
    the weights, for those of the live network belong to other weights; counters are copied.
    """
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


@torch.no_grad()
def update(average: AveragedModel, model: nn.Module) -> None:
    """Take the weights and buffers of `model` after a step into the average."""
    average.update_parameters(model)
    for own, live in zip(average.module.buffers(), model.buffers(), strict=True):
        if not own.is_floating_point():
            own.copy_(live)
