"""Copies of a model for an attack; why there is none, or one cannot be used any more."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_LONGEST = 120  # characters of another library's message that are repeated


class Unshadowable(Exception):
    """A model of which no copy of this kind can be made; the message says why."""


def brief(error: Exception) -> str:
    """The type of an error and how its message begins."""
    first = next(iter(str(error).strip().splitlines()), "")
    return (
        f"{type(error).__name__}: {first if len(first) <= _LONGEST else first[:_LONGEST] + ' ...'}"
    )


class Stale(ValueError):
    """A copy has been found not to give what the live model gives; the message says by how much."""


def refuse_hooks(model: nn.Module) -> None:
    """Raise Unshadowable where a module has hooks, or a forward that was put in: they belong to the live model."""
    if nn.modules.module._has_any_global_hook():
        raise Unshadowable("all modules have hooks")
    for name, module in model.named_modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks):
            raise Unshadowable(f"{name or 'the model'} has hooks")
        forward = module.__dict__.get("forward")
        # A method of the module itself is copied with it; whatever else it calls would be the live model's. A
        # DistributedDataParallel wrapper, whose forward is that of its module meanwhile, is left out of a copy.
        if forward is not None and not (
            isinstance(module, DistributedDataParallel)
            or (isinstance(forward, types.MethodType) and forward.__self__ is module)
        ):
            raise Unshadowable(f"{name or 'the model'} has another forward than its class")


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy`, in which `memo` has the tensors that the copy is to hold in place of the model's.

    A DistributedDataParallel wrapper is left out: its copy would hook live parameters that are shared, and take part
    in the training of the live model.

    Raises:
        Unshadowable: it cannot be copied, copies its tensors itself, so that none could be refreshed (TorchScript), or
            the copy holds modules of the live model, on which its forward would leave traces.
    """
    expected = {id(memo[id(tensor)]) for tensor in _tensors(model) if id(tensor) in memo}
    live = {id(module) for module in model.modules()}
    try:
        for module in reversed(list(model.modules())):
            if isinstance(module, DistributedDataParallel):
                memo[id(module)] = copy.deepcopy(module.module, memo)
        twin: nn.Module = copy.deepcopy(model, memo)
    # Copying runs code of whatever the model holds: locks, open files and the like raise what they please.
    except Exception as error:
        raise Unshadowable(f"it cannot be copied ({brief(error)})") from error
    for name, module in twin.named_modules():
        if id(module) in live:
            raise Unshadowable(f"{name or 'the model'} cannot be copied: its copy is itself")
    if not expected <= set(map(id, _tensors(twin))):
        raise Unshadowable("it copies its weights by itself")
    return twin


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
