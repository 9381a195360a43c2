"""Memory formats: of the ops' results, the same for tracing and every backend, and of what kernels read and write."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where x is stored so, else contiguous: a slice or a permutation of images included."""
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format


def like(x: Tensor, other: Tensor | None) -> Tensor | None:
    """other, where there is one, in the memory format of a dense x."""
    return None if other is None else other.contiguous(memory_format=memory_format(x))


def channels_of(x: Tensor) -> tuple[int, int]:
    """The channels of a dense x [N, C, ...], and how many elements in a row share one: 1 in channels_last."""
    inner = 1 if memory_format(x) is torch.channels_last else math.prod(x.shape[2:])
    return x.shape[1], inner


def in_one_layout(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The tensors densely in the memory format of the first: themselves where they are so already, else copies."""
    tensors = (x, *others)
    for tensor in tensors:  # all() over a generator costs a tiny call 0.3 us
        if not tensor.is_contiguous():
            layout = memory_format(x)
            return tuple(each.contiguous(memory_format=layout) for each in tensors)
    return tensors


def written(tensor: Tensor, storage: Tensor) -> None:
    """Hand what a kernel wrote to tensor's contiguous stand-in, or to tensor itself, over to autograd and tensor."""
    if storage is tensor:
        # The kernel wrote behind torch's back: a graph that saved the old values must learn that they are gone.
        torch.autograd.graph.increment_version(tensor)
    else:
        tensor.copy_(storage)


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Room for the stem's result, [N, O, H, W] in the weight's dtype: channels_last strides whatever the sizes."""
    return torch.empty(
        (x.shape[0], weight.shape[0], *x.shape[2:]),
        dtype=weight.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
