"""The exponential moving average of the weights (Polyak averaging), kept beside the live ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
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
    """Take the weights and buffers of `model` after a step into the average, in place and all at once.

    `count` is the host's part of it. torch's own `update_parameters` does both, and copies its count, which lies on
    the CPU, to the device: that cannot be captured.
    """
    own, live = _tensors(average.module), _tensors(model)
    assert average.multi_avg_fn is not None
    for dtype in {tensor.dtype for tensor in own}:
        mine = [tensor for tensor in own if tensor.dtype is dtype]
        theirs = [tensor for tensor in live if tensor.dtype is dtype]
        if dtype.is_floating_point:
            average.multi_avg_fn(mine, theirs, average.n_averaged)
        else:
            torch._foreach_copy_(mine, theirs)


@torch.no_grad()
def count(average: AveragedModel, model: nn.Module) -> None:
    """Take note of an update, the first of which makes the average what `model` is."""
    if average.n_averaged == 0:
        torch._foreach_copy_(_tensors(average.module), _tensors(model))
    average.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
