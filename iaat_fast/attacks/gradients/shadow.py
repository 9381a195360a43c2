"""The shadow: a copy of a model with frozen weights, in the attack's precision, differentiated by autograd."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iaat_fast.attacks import inputs

BatchNorm = nn.modules.batchnorm._BatchNorm

_LONGEST = 120  # maximum length, in characters, of a quoted error message


class Unshadowable(Exception):
    """No copy of this kind can be made of the model; the message says why."""


def brief(error: Exception) -> str:
    """The type of an error and the first line of its message, shortened."""
    first = next(iter(str(error).strip().splitlines()), "")
    return (
        f"{type(error).__name__}: {first if len(first) <= _LONGEST else first[:_LONGEST] + ' ...'}"
    )


class Shadow:
    """A copy of a model, in which each parameter and buffer has a twin: a frozen tensor, refreshed from the live one.

    Args:
        model: the live model, in the mode in which it is attacked.
        dtype: of the twins; None for that of the live tensors. BatchNorm keeps its dtype: statistics need its range.
        channels_last: store the weights of convolutions channels last.

    Attributes:
        module: the copy; it maps images [N, ...] of `dtype` to logits [N, C].

    Raises:
        Unshadowable: the model has hooks, or cannot be copied.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None, channels_last: bool) -> None:
        refuse_hooks(model)
        tensors = list(_with_dtypes(model, dtype))
        twins = {
            id(tensor): _empty_twin(tensor, kept or tensor.dtype, channels_last)
            for tensor, kept in tensors
        }
        # deepcopy uses the entries of its memo instead of copies: here the twins, one for each group of tied weights.
        self.module: nn.Module = copy_modules(model, dict(twins))
        self._model, self._dtype = model, dtype
        self._live = [tensor for tensor, _ in tensors]
        self._twins = [twins[id(tensor)] for tensor in self._live]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live tensors into their twins."""
        if self._live:
            torch._foreach_copy_(self._twins, self._live)

    def copied_forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] by the copied modules on the live tensors, and so in the live model's precision.

        Without a `dtype` the twins are used, which hold the same values.
        """
        if self._dtype is None:
            logits: Tensor = inputs.logits_in(self.module(x))
            return logits
        live = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        logits = inputs.logits_in(torch.func.functional_call(self.module, live, (x,)))
        return logits


def _with_dtypes(
    model: nn.Module, dtype: torch.dtype | None
) -> Iterator[tuple[Tensor, torch.dtype | None]]:
    """Every parameter and buffer once, with the dtype of its twin; None for its own."""
    seen: set[int] = set()
    for module in model.modules():
        keeps = isinstance(module, BatchNorm)
        for tensor in _tensors_of(module):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield tensor, None if keeps or not tensor.is_floating_point() else dtype


def _empty_twin(tensor: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.preserve_format
    if channels_last and tensor.dim() == 4:
        layout = torch.channels_last
    twin = torch.empty_like(tensor, dtype=dtype, memory_format=layout, requires_grad=False)
    return nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin


def refuse_hooks(model: nn.Module) -> None:
    """Raise Unshadowable if a module has hooks or a replaced forward, which would run on the live model."""
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
        # A bound method of the module itself is copied with it; anything else might use the live model.
        # DistributedDataParallel, whose forward `bypass_ddp` replaces during an attack, is left out of copies.
        if forward is not None and not (
            isinstance(module, DistributedDataParallel)
            or (isinstance(forward, types.MethodType) and forward.__self__ is module)
        ):
            raise Unshadowable(f"{name or 'the model'} has another forward than its class")


def copy_modules(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` of a model; `memo` maps ids of its tensors to those that the copy uses instead.

    DistributedDataParallel wrappers are left out: a copy of one would hook shared live parameters and take part in the
    training of the live model.

    Raises:
        Unshadowable: the model cannot be copied; ignores `memo`, so that the copy could not be refreshed (TorchScript);
            or the copy contains modules of the live model, which its forward might change.
    """
    expected = {id(memo[id(tensor)]) for tensor in _tensors(model) if id(tensor) in memo}
    live = {id(module) for module in model.modules()}
    try:
        for module in reversed(list(model.modules())):
            if isinstance(module, DistributedDataParallel):
                memo[id(module)] = copy.deepcopy(module.module, memo)
        twin: nn.Module = copy.deepcopy(model, memo)
    # The objects in a model run their own code when copied: locks, open files and others may raise anything.
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
        yield from _tensors_of(module)


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's own parameters and buffers, without those of its submodules."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
