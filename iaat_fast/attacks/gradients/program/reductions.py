"""Operations that sum or average over dimensions: mean, sum, softmax, layer and group normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from iaat_fast.attacks.gradients.program.operations import Gradients, Operation
from iaat_fast.attacks.gradients.program.parameters import Parameters
from iaat_fast.ops.layout import like, memory_format

_INPUT_ONLY = [True, False, False]  # of the gradients of input, weight and bias


class Mean(Operation):
    """The mean over some dimensions."""

    name = "mean"
    keeps = (0,)

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self._dims, self._keepdim = sorted(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self._dims, self._keepdim)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        x = inputs[0]
        assert x is not None
        if not self._keepdim:
            grad = _with_dims(grad, self._dims)
        averaged = math.prod(x.shape[dim] for dim in self._dims)
        # Divided and expanded in one kernel, into the memory format of the input.
        return (torch.div(grad.expand_as(x), averaged, out=torch.empty_like(x)),)


class Sum(Operation):
    """The sum over some dimensions."""

    name = "sum"
    fresh = False
    has_extra = True

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self._dims, self._keepdim = sorted(dims), keepdim

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x.sum(self._dims, self._keepdim), x.shape

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        if not self._keepdim:
            grad = _with_dims(grad, self._dims)
        return (grad.expand(extra),)


def _with_dims(grad: Tensor, dims: Sequence[int]) -> Tensor:
    """A gradient with dimensions of size 1 where a reduction has removed them; `dims` in order."""
    for dim in dims:
        grad = grad.unsqueeze(dim)
    return grad


class Softmax(Operation):
    """Softmax over a dimension."""

    name = "softmax"
    keeps_output = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(self._dim)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        assert output is not None
        return (
            torch.ops.aten._softmax_backward_data.default(grad, output, self._dim, output.dtype),
        )


class _Normalisation(Operation):
    """The base of normalisations over an image's own values; weight and bias, nodes or None, become twins."""

    keeps = (0,)
    has_extra = True

    def __init__(self, weight: Node | None, bias: Node | None, eps: float) -> None:
        super().__init__()
        self._nodes, self._eps = (weight, bias), eps

    def bind(self, parameters: Parameters) -> None:
        self._weight, self._bias = (
            None if node is None else parameters.plain(node) for node in self._nodes
        )


class LayerNorm(_Normalisation):
    """Layer normalisation over the last dimensions, of the sizes `shape`."""

    name = "layer_norm"

    def __init__(
        self, shape: Sequence[int], weight: Node | None, bias: Node | None, eps: float
    ) -> None:
        super().__init__(weight, bias, eps)
        self._shape = list(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        out, *statistics = torch.ops.aten.native_layer_norm.default(
            x, self._shape, self._weight, self._bias, self._eps
        )
        return out, statistics

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        gradients: Gradients = torch.ops.aten.native_layer_norm_backward.default(
            grad, inputs[0], self._shape, *extra, self._weight, self._bias, _INPUT_ONLY
        )
        return gradients[:1]


class GroupNorm(_Normalisation):
    """Group normalisation of [N, C, ...] over C / groups channels each."""

    name = "group_norm"

    def __init__(self, groups: int, weight: Node | None, bias: Node | None, eps: float) -> None:
        super().__init__(weight, bias, eps)
        self._groups = groups

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        x = _as_group_norm_reads(x)
        out, *statistics = torch.ops.aten.native_group_norm.default(
            x, self._weight, self._bias, *self._sizes(x), self._eps
        )
        return out, statistics

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        assert inputs[0] is not None
        x = _as_group_norm_reads(inputs[0])
        gradients: Gradients = torch.ops.aten.native_group_norm_backward.default(
            like(x, grad), x, *extra, self._weight, *self._sizes(x), _INPUT_ONLY
        )
        return gradients[:1]

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        return x.shape[0], x.shape[1], math.prod(x.shape[2:]), self._groups


def _as_group_norm_reads(x: Tensor) -> Tensor:
    """x dense, in the layout that torch's kernels of group normalisation take; their backward does not look at it."""
    layout = memory_format(x) if x.is_cpu else torch.contiguous_format
    return x.contiguous(memory_format=layout)
