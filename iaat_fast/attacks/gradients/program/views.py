"""Operations that only move entries: concatenation, reshapes, permutations, slices and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iaat_fast.attacks.gradients.program.operations import Gradients, Operation, sum_to


class Cat(Operation):
    """Concatenation."""

    name = "cat"
    fresh = False
    has_extra = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def forward(self, *parts: Tensor) -> tuple[Tensor, Any]:
        return self.clamp_(torch.cat(parts, self._dim)), [p.shape[self._dim] for p in parts]

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return grad.split(extra, self._dim)


class Reshape(Operation):
    """A reshape. size(x, *sizes) gives the new shape; `sizes` are inputs that depend on the number of images."""

    name = "reshape"
    fresh = False
    owns_output = False
    has_extra = True

    def __init__(self, size: Callable[..., Any]) -> None:
        super().__init__()
        self._size = size

    def forward(self, x: Tensor, *sizes: int) -> tuple[Tensor, Any]:
        return x.reshape(self._size(x, *sizes)), x.shape

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (grad.reshape(extra),)


class FlattenImages(Operation):
    """A channels_last tensor [N, C, H, W] as [N, H * W * C]: a view, where `flatten` would copy."""

    name = "flatten"
    fresh = False
    owns_output = False
    has_extra = True

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1), x.shape

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        n, c, h, w = extra
        return (grad.reshape(n, h, w, c).permute(0, 3, 1, 2),)


class Expand(Operation):
    """A value repeated along dimensions of size 1; `size` as in `Reshape`."""

    name = "expand"
    fresh = False
    owns_output = False
    has_extra = True

    def __init__(self, size: Callable[..., Any]) -> None:
        super().__init__()
        self._size = size

    def forward(self, x: Tensor, *sizes: int) -> tuple[Tensor, Any]:
        return x.expand(self._size(x, *sizes)), x.shape

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (sum_to(grad, extra),)


class Permute(Operation):
    """A permutation of the dimensions."""

    name = "permute"
    fresh = False
    owns_output = False

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self._dims = [dim % len(dims) for dim in dims]
        self._back = [self._dims.index(dim) for dim in range(len(dims))]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self._dims)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (grad.permute(self._back),)


class Slice(Operation):
    """Every step-th entry from start to end along a dimension."""

    name = "slice"
    owns_output = False
    has_extra = True

    def __init__(self, dim: int, start: int, end: int, step: int = 1) -> None:
        super().__init__()
        self._range = (dim, start, end, step)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return torch.ops.aten.slice.Tensor(x, *self._range), x.shape

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (torch.ops.aten.slice_backward.default(grad, extra, *self._range),)


class Pad(Operation):
    """A constant border; negative widths crop."""

    name = "pad"
    fresh = False

    def __init__(self, border: Sequence[int], value: float) -> None:
        super().__init__()
        self._border, self._value = list(border), value

    def forward(self, x: Tensor) -> Tensor:
        return torch.constant_pad_nd(x, self._border, self._value)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (torch.constant_pad_nd(grad, [-width for width in self._border]),)
