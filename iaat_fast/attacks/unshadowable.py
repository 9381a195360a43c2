"""Why a model cannot be copied for an attack."""

from __future__ import annotations

from torch import nn


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
