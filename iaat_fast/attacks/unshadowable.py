"""Copies of a model for an attack, and why there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Unshadowable(Exception):
    """A model of which no copy of this kind can be made; the message says why."""


def refuse_hooks(model: nn.Module) -> None:
    """Raise Unshadowable where a module has hooks: they belong to the live model."""
    for name, module in model.named_modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks):
            raise Unshadowable(f"{name or 'the model'} has hooks")


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy`, in which `memo` has the tensors that the copy is to hold in place of the model's.

    A DistributedDataParallel wrapper is left out: its copy would hook live parameters that are shared, and take part
    in the training of the live model.

    Raises:
        Unshadowable: it cannot be copied, or copies its tensors itself, so that none could be refreshed (TorchScript).
    """
    expected = {id(memo[id(tensor)]) for tensor in _tensors(model) if id(tensor) in memo}
    try:
        for module in reversed(list(model.modules())):
            if isinstance(module, DistributedDataParallel):
                memo[id(module)] = copy.deepcopy(module.module, memo)
        twin: nn.Module = copy.deepcopy(model, memo)
    # Copying runs code of whatever the model holds: locks, open files and the like raise what they please.
    except Exception as error:
        raise Unshadowable(f"it cannot be copied ({type(error).__name__}: {error})") from error
    if not expected <= set(map(id, _tensors(twin))):
        raise Unshadowable("it copies its weights by itself")
    return twin


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
