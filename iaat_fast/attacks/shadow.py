"""The shadow: a frozen copy of the live model in the attack's precision, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from iaat_fast.attacks.unshadowable import copied, refuse_hooks

BatchNorm = nn.modules.batchnorm._BatchNorm


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
        tensors = list(_tensors(model, dtype))
        twins = {
            id(tensor): _empty_twin(tensor, kept or tensor.dtype, channels_last)
            for tensor, kept in tensors
        }
        # Prefilled, the memo keeps the copy from copying a weight: it takes the twin, for tied weights the same one.
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
        """What the copied modules give for images in the live model's precision: with its own tensors, if need be."""
        if self._dtype is None:
            logits: Tensor = self.module(x)
            return logits
        live = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        logits = torch.func.functional_call(self.module, live, (x,))
        return logits


def _tensors(
    model: nn.Module, dtype: torch.dtype | None
) -> Iterator[tuple[Tensor, torch.dtype | None]]:
    """Every parameter and buffer once, and the dtype of its twin."""
    seen: set[int] = set()
    for module in model.modules():
        keeps = isinstance(module, BatchNorm)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield tensor, None if keeps or not tensor.is_floating_point() else dtype


def _empty_twin(tensor: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.preserve_format
    if channels_last and tensor.dim() == 4:
        layout = torch.channels_last
    twin = torch.empty_like(tensor, dtype=dtype, memory_format=layout, requires_grad=False)
    return nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin
