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


def modules_of(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives, in another order.

    Every call of an attack asks for modules, parameters and buffers, six times in all, while a GPU stands idle: there a
    loop over the modules' dictionaries takes a fraction of the time of the recursive generators of `torch.nn`.
    """
    found = {id(model): model}
    queue = [model]
    for module in queue:
        for child in module._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                queue.append(child)
    return queue


def parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters of modules, each once."""
    every = (p for module in modules for p in module._parameters.values() if p is not None)
    return list({id(p): p for p in every}.values())


def buffers_of(modules: list[nn.Module]) -> list[Tensor]:
    """The buffers of modules, each once."""
    every = (b for module in modules for b in module._buffers.values() if b is not None)
    return list({id(b): b for b in every}.values())


def couples_samples(model: Callable[[Tensor], Tensor], bn: str) -> bool:
    """Whether a sample's logits depend on who else is in the batch: BatchNorm on the batch's own statistics."""
    if not isinstance(model, nn.Module):
        return False
    layers = [m for m in modules_of(model) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(bn != "eval" or layer.running_mean is None for layer in layers)


@contextlib.contextmanager
def attacked(model: Callable[[Tensor], Tensor], bn: str) -> Iterator[None]:
    """Put the model in evaluation mode, its BatchNorm layers in the mode `bn`, and restore it on the way out.

    Args:
        bn: "eval", running statistics; "train", the batch's own statistics, buffers restored afterwards;
            "train_update", the batch's own statistics, which also update the running ones.

    Autocast that the caller has switched on is off inside: verdicts and gradients are those of the model as it is.
    """
    with contextlib.ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_in_mode(model, bn))
        yield


@contextlib.contextmanager
def _in_mode(model: Callable[[Tensor], Tensor], bn: str) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        yield
        return
    modules = modules_of(model)
    modes = [(module, module.training) for module in modules]
    # Into buffers made in inference mode nothing can write outside it.
    buffers = [b for b in buffers_of(modules) if not b.is_inference()] if bn == "train" else []
    saved = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        for module in modules:
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            _set_mode(module, batch_norm and bn != "eval")
        yield
    finally:
        for module, training in modes:
            _set_mode(module, training)
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _set_mode(module: nn.Module, training: bool) -> None:
    if module.training == training:
        return
    if type(module).__setattr__ is nn.Module.__setattr__:
        # Past its search among parameters, buffers and modules, for every module of a network in training mode.
        object.__setattr__(module, "training", training)
    else:
        module.training = training
