"""Why a model cannot be copied for an attack, or a copy cannot be used any more."""

from __future__ import annotations

import types

from torch import nn

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
        # A method of the module itself is copied with it; whatever else it calls would be the live model's.
        if forward is not None and not (
            isinstance(forward, types.MethodType) and forward.__self__ is module
        ):
            raise Unshadowable(f"{name or 'the model'} has another forward than its class")


def refuse_shared(copy: nn.Module, model: nn.Module) -> None:
    """Raise Unshadowable where a copy holds modules of the live model, on which its forward would leave traces."""
    live = {id(module) for module in model.modules()}
    for name, module in copy.named_modules():
        if id(module) in live:
            raise Unshadowable(f"{name or 'the model'} cannot be copied: its copy is itself")
