"""Works around a oneDNN kernel that writes out of bounds: 1x1 convolutions, stride above 1, few input channels.

On x86 CPUs the gradient of such a layer's weights, in float32 with images or weights in channels last, is computed by
a kernel of oneDNN that copies whole vectors of channels (16 with AVX-512, 8 with AVX2) into a buffer sized for the
channels there are (github.com/uxlfoundation/oneDNN/issues/6035; torch 2.13 and 2.14). Training ends in a crash, a hang
or wrong gradients. With both stored contiguously, torch takes another kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

VECTOR = 16
"""A layer with at least this many input channels is safe: it is the widest vector of these kernels."""

_GRADIENTS = torch.ops.aten.convolution_backward.default


def is_narrow(weight: Tensor) -> bool:
    """Whether weights are [O, C, 1, 1] or [O, C, 1] with C, the input channels per group, below `VECTOR`."""
    return weight.dim() in (3, 4) and weight.shape[1] < VECTOR and set(weight.shape[2:]) == {1}


@torch.fx.wrap  # symbolic traces cannot hold the test
def contiguous_on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy, on CPUs. `Tensor.contiguous` would keep channels-last strides where C or H and W are 1."""
    return tensor.clone(memory_format=torch.contiguous_format) if tensor.is_cpu else tensor


def _stored_like(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    """`gradient` with the strides of `tensor`, which compiled code expects."""
    return None if gradient is None else torch.empty_like(tensor).copy_(gradient)


class NarrowConv2d(nn.Conv2d):
    """A convolution that on CPUs makes its images and weights contiguous first."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(contiguous_on_cpu(x), contiguous_on_cpu(weight), bias)


class ContiguousNarrow(TorchDispatchMode):
    """Inside this context, gradients of narrow layers of any model are computed from contiguous tensors.

    with ContiguousNarrow():
        loss.backward()
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is _GRADIENTS:
            gradient, x, weight, sizes, stride, *others = args
            if is_narrow(weight) and max(stride) > 1:
                tensors = map(contiguous_on_cpu, (gradient, x, weight))
                found = func(*tensors, sizes, stride, *others)
                return *map(_stored_like, found, (x, weight)), found[2]
        return func(*args, **(kwargs or {}))
