"""The shadow: a frozen copy of a model in the attack's precision, differentiated by autograd; or why there is none."""

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

_LONGEST = 120  # characters of another library's message that are repeated


class Unshadowable(Exception):
    """A model of which no copy of this kind can be made; the message says why."""


def brief(error: Exception) -> str:
    """The type of an error and how its message begins."""
    first = next(iter(str(error).strip().splitlines()), "")
    return (
        f"{type(error).__name__}: {first if len(first) <= _LONGEST else first[:_LONGEST] + ' ...'}"
    )


class Shadow:
    """A copy of a model whose weights stand still, refreshed from the live ones.

    Args:
        model: the live model, in the mode in which it is attacked.
        dtype: of the copy's weights, None for their own. BatchNorm keeps its own: statistics need the range.
        channels_last: store convolutions channels last.

    Attributes:
        module: maps images of `dtype` to logits.

    Raises:
        Unshadowable: the model has hooks, which belong to the live one, or cannot be copied with these weights.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None, channels_last: bool) -> None:
        refuse_hooks(model)
        tensors = list(_with_dtypes(model, dtype))
        twins = {
            id(tensor): _empty_twin(tensor, kept or tensor.dtype, channels_last)
            for tensor, kept in tensors
        }
        # deepcopy takes what its memo holds in place of a copy: here the twin, for tied weights the same one.
        self.module: nn.Module = copied(model, dict(twins))
        self._model, self._dtype = model, dtype
        self._live = [tensor for tensor, _ in tensors]
        self._twins = [twins[id(tensor)] for tensor in self._live]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live weights, in one pass."""
        if self._live:
            torch._foreach_copy_(self._twins, self._live)

    def traced(self, x: Tensor) -> Tensor:
        """Logits [N, C] by the copied modules in the live model's precision, for which they run on its own tensors."""
        if self._dtype is None:
            logits: Tensor = inputs.logits_in(self.module(x))
            return logits
        live = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        logits = inputs.logits_in(torch.func.functional_call(self.module, live, (x,)))
        return logits


def _with_dtypes(
    model: nn.Module, dtype: torch.dtype | None
) -> Iterator[tuple[Tensor, torch.dtype | None]]:
    """Every parameter and buffer once, and the dtype of its twin."""
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
        yield from _tensors_of(module)


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's own parameters and buffers, without those of the modules in it."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
