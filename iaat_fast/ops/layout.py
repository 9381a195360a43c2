"""Memory formats of the ops' results, the same for tracing and all backends, and of the tensors that kernels use."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if x is stored so, else contiguous, also for slices and permutations of images."""
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format


def like(x: Tensor, other: Tensor | None) -> Tensor | None:
    """other in the memory format of x, which is dense (contiguous or channels_last); None if it is None."""
    return None if other is None else other.contiguous(memory_format=memory_format(x))


def channels_of(x: Tensor) -> tuple[int, int]:
    """The channels of a dense x [N, C, ...], and how many consecutive elements share one, 1 in channels_last."""
    inner = 1 if memory_format(x) is torch.channels_last else math.prod(x.shape[2:])
    return x.shape[1], inner


def in_one_layout(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All tensors dense and in the memory format of the first: the same tensors if they are already, else copies."""
    tensors = (x, *others)
    for tensor in tensors:  # all() over a generator would cost 0.3 us
        if not tensor.is_contiguous():
            layout = memory_format(x)
            return tuple(each.contiguous(memory_format=layout) for each in tensors)
    return tensors


def written(tensor: Tensor, storage: Tensor) -> None:
    """Finish a kernel's write to tensor, or copy what it wrote to `storage`, a dense copy of it, into tensor."""
    if storage is tensor:
        # torch did not see the kernel's write: tell autograd that saved values have changed.
        torch.autograd.graph.increment_version(tensor)
    else:
        tensor.copy_(storage)


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """An empty tensor for the stem's result: [N, O, H, W] in the weight's dtype, always with channels_last strides."""
    return torch.empty(
        (x.shape[0], weight.shape[0], *x.shape[2:]),
        dtype=weight.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
