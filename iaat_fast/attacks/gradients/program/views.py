"""Operations that only move entries: concatenation, reshapes, permutations, slices and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iaat_fast.attacks.gradients.program.operations import (
    Gradients,
    MultiOutput,
    Operation,
    sum_to,
)
from iaat_fast.ops.layout import memory_format


class Cat(Operation):
    """Concatenation."""

    name = "cat"
    fresh = False
    has_extra = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *parts: Tensor) -> tuple[Tensor, Any]:
        return self.clamp_(torch.cat(parts, self.dim)), [p.shape[self.dim] for p in parts]

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return grad.split(extra, self.dim)


class Stack(Operation):
    """Values of one shape along a new dimension."""

    name = "stack"
    fresh = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.stack(parts, self._dim)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return grad.unbind(self._dim)


class Reshape(Operation):
    """A reshape. size(x, *sizes) gives the new shape; `sizes` are inputs that depend on the number of images."""

    name = "reshape"
    fresh = False
    passes = True
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
    passes = True
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
    passes = True
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


class Part(Operation):
    """The base of views of some entries along `dim`: every step-th from start to end, all counted from 0."""

    owns_output = False
    has_extra = True

    def __init__(self, dim: int, start: int, end: int, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.end, self.step = dim, start, end, step

    def view(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return self.view(x), (x.shape, memory_format(x))

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        shape, layout = extra
        # In the layout of x: `slice_backward` makes a contiguous one, and what then reads two layouts is slow
        # (the backward of SiLU 5 times slower, in a MixNet).
        full = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        self.view(full.zero_()).copy_(grad)
        return (full,)


class Slice(Part):
    """Every step-th entry from start to end along a dimension."""

    name = "slice"

    def view(self, x: Tensor) -> Tensor:
        part: Tensor = torch.ops.aten.slice.Tensor(x, self.dim, self.start, self.end, self.step)
        return part


class Select(Part):
    """One entry along a dimension, which is removed."""

    name = "select"

    def __init__(self, dim: int, position: int) -> None:
        super().__init__(dim, position, position + 1)

    def view(self, x: Tensor) -> Tensor:
        return x.select(self.dim, self.start)


class Split(MultiOutput):
    """Consecutive parts of a value along a dimension; their gradients are joined in one concatenation.

    Args:
        dim: the dimension.
        sizes: of the parts, which are together all of it.
        keepdim: False if the parts, of size 1, have not the dimension.
    """

    name = "split"

    def __init__(self, dim: int, sizes: Sequence[int], *, keepdim: bool = True) -> None:
        super().__init__()
        self._dim, self._sizes, self._keepdim = dim, list(sizes), keepdim
        self.count = len(self._sizes)

    def forward(self, x: Tensor) -> tuple[Sequence[Tensor], Any]:
        parts = x.split(self._sizes, self._dim) if self._keepdim else x.unbind(self._dim)
        return parts, [part.shape for part in parts]

    def backward_all(self, grads: Sequence[Tensor | None], extra: Any) -> Gradients:
        given = next(grad for grad in grads if grad is not None)
        parts = [
            given.new_zeros(shape) if grad is None else grad
            for grad, shape in zip(grads, extra, strict=True)
        ]
        joined = torch.cat if self._keepdim else torch.stack
        return (joined(parts, self._dim),)


class Roll(Operation):
    """Entries shifted along dimensions; those that leave at one end come back at the other."""

    name = "roll"

    def __init__(self, shifts: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        self._shifts, self._dims = list(shifts), list(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(self._shifts, self._dims)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (grad.roll([-shift for shift in self._shifts], self._dims),)


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
