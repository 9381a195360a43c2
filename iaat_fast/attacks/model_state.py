"""The model as an attack needs it: a chosen BatchNorm mode, and everything as it was afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

BN_MODES = ("eval", "train", "train_update")


def bare(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The module inside a DistributedDataParallel wrapper, whose hooks and buffer broadcasts an attack must avoid."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.module
    return model


def couples_samples(model: Callable[[Tensor], Tensor], bn: str) -> bool:
    """Whether a sample's logits depend on who else is in the batch: BatchNorm on the batch's own statistics."""
    if not isinstance(model, nn.Module):
        return False
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(bn != "eval" or layer.running_mean is None for layer in layers)


@contextlib.contextmanager
def attacked(model: Callable[[Tensor], Tensor], bn: str) -> Iterator[None]:
    """Put the model in evaluation mode, its BatchNorm layers in the mode `bn`, and restore it on the way out.

    Args:
        bn: "eval", running statistics; "train", the batch's own statistics, buffers restored afterwards;
            "train_update", the batch's own statistics, which also update the running ones.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()] if bn == "train" else []
    try:
        for module, training in modes:
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            wanted = batch_norm and bn != "eval"
            if training != wanted:
                module.training = wanted
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
