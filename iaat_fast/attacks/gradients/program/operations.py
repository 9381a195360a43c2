"""The operations of a program: the base class, elementwise operations and BatchNorm.

`forward` maps the values of the inputs to the output; with `has_extra` it returns (output, extra). `backward` maps the
gradient of the output, and the extra, to the gradients of the inputs. An operation that makes a new tensor may end in
an activation, a clamp to [floor, ceiling]; ReLU is [0, infinity]. The clamp's gradient is not part of `backward`: the
reverse pass fuses it with the sum of gradients (`straight_line.py`). Inputs and outputs [N, ...] depend on the images;
tensors that depend only on the weights are twins (`parameters.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from iaat_fast.attacks.gradients.program.parameters import Norm, Normalisation, Parameters

Gradients = Sequence[Tensor | None]

_scale_shift_relu = torch.ops.iaat_fast.scale_shift_relu.default
_scale_shift_relu_backward_ = torch.ops.iaat_fast.scale_shift_relu_backward_.default


class Operation:
    """The base of all operations.

    Attributes:
        keeps: positions of the inputs whose values `backward` reads.
        keeps_output: whether `backward` reads the output.
        fresh: whether the gradients that `backward` returns are new tensors, which may be overwritten.
        passes: whether it returns the gradient that it gets, or a view of all of it, as its input's only.
        owns_output: whether the output is a new tensor, so that a clamp may follow in place.
        has_extra: whether `forward` also returns an extra for `backward`.
        floor, ceiling: bounds of the clamp at the end; infinite for none.
    """

    name = ""
    keeps: tuple[int, ...] = ()
    keeps_output = False
    fresh = True
    passes = False
    owns_output = True
    has_extra = False

    def __init__(self) -> None:
        self.floor, self.ceiling = -math.inf, math.inf

    @property
    def clamps(self) -> bool:
        return self.floor > -math.inf or self.ceiling < math.inf

    def bind(self, parameters: Parameters) -> None:
        """Get the twins that the operation reads; called once, after all fusions."""

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        raise NotImplementedError

    def clamp_(self, out: Tensor) -> Tensor:
        """The clamp at the end, in place."""
        if self.floor == 0 and self.ceiling == math.inf:
            return out.relu_()
        return out.clamp_(self.floor, self.ceiling) if self.clamps else out


class MultiOutput(Operation):
    """An operation with `count` values, which `Pick` separates; `forward` returns (values, extra)."""

    owns_output = False
    has_extra = True
    count = 0

    def backward_all(self, grads: Sequence[Tensor | None], extra: Any) -> Gradients:
        """The gradients of the inputs from those of the values (None: no gradient) and the extra of `forward`."""
        raise NotImplementedError


class Pick(Operation):
    """One of the values of the operation before it."""

    name = "pick"
    fresh = False
    owns_output = False

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, values: Sequence[Any]) -> Any:
        return values[self.position]


class Images(Operation):
    """Prepare the images for the first layer: subtract the normalisation's shift, set dtype and memory format."""

    name = "images"
    owns_output = False

    def __init__(
        self,
        normalisation: Normalisation | None,
        dtype: torch.dtype | None,
        *,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.normalisation, self._dtype, self._channels_last = normalisation, dtype, channels_last
        self.shift: Tensor | None = None
        self.raw = False  # True: passed on unchanged, as the stem reads them

    def bind(self, parameters: Parameters) -> None:
        if self.normalisation is not None:
            self.shift = parameters.shift(self.normalisation)

    def forward(self, x: Tensor) -> Tensor:
        if self.raw:
            return x
        dtype = x.dtype if self._dtype is None else self._dtype
        layout = torch.preserve_format
        if self._channels_last and x.dim() == 4:
            layout = torch.channels_last
        if self.shift is None:
            return x.to(dtype, memory_format=layout)
        # Subtracted before rounding, in one kernel with the change of dtype and memory format.
        return torch.sub(x, self.shift, out=torch.empty_like(x, dtype=dtype, memory_format=layout))


class ScaleShift(Operation):
    """BatchNorm in eval mode that is not folded into a layer, with a sum before it and a clamp after it in one kernel.

    An optional second input is first added to the first one, in place, so that the first then holds the sum.
    """

    name = "batch_norm"

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def bind(self, parameters: Parameters) -> None:
        self._scale, self._shift = parameters.norm(self.norm)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = _scale_shift_relu(
            x, residual, self._scale, self._shift, self.floor, self.ceiling
        )
        return out

    def backward_(self, grad: Tensor, output: Tensor, residual: Tensor | None) -> Tensor:
        """The gradient of the sum, written over grad; `residual`, another gradient of that sum, is added."""
        _scale_shift_relu_backward_(grad, output, self._scale, residual, self.floor, self.ceiling)
        return grad


class Clamp(Operation):
    """ReLU, ReLU6 or hardtanh that is not fused into the operation before it."""

    name = "clamp"
    fresh = False
    passes = True

    def __init__(self, floor: float, ceiling: float) -> None:
        super().__init__()
        self.floor, self.ceiling = floor, ceiling

    def forward(self, x: Tensor) -> Tensor:
        if self.floor == 0 and self.ceiling == math.inf:
            return torch.relu(x)
        return x.clamp(self.floor, self.ceiling)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return (grad,)


class Pointwise(Operation):
    """An elementwise activation; backward(grad, value) gets the input, or the output with `from_output`."""

    def __init__(
        self,
        name: str,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, Tensor], Tensor],
        *,
        from_output: bool,
    ) -> None:
        super().__init__()
        self.name, self._forward, self._backward = name, forward, backward
        self.keeps, self.keeps_output = (() if from_output else (0,)), from_output

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        value = output if self.keeps_output else inputs[0]
        assert value is not None
        return (self._backward(grad, value),)


class Add(Operation):
    """The sum of two values, either of which may be broadcast."""

    name = "add"
    fresh = False
    has_extra = True

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Any]:
        return self.clamp_(torch.add(a, b)), (a.shape, b.shape)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        return tuple(sum_to(grad, shape) for shape in extra)


class Mul(Operation):
    """The product of two values, either of which may be broadcast (squeeze-and-excitation for example)."""

    name = "mul"
    keeps = (0, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.clamp_(torch.mul(a, b))

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        a, b = inputs
        assert a is not None
        assert b is not None
        return sum_to(grad * b, a.shape), sum_to(grad * a, b.shape)


class Matmul(Operation):
    """The products of two stacks of matrices [..., A, B] and [..., B, C], whose other dimensions may be broadcast."""

    name = "matmul"
    keeps = (0, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        a, b = inputs
        assert a is not None
        assert b is not None
        return sum_to(grad @ b.mT, a.shape), sum_to(a.mT @ grad, b.shape)


class WithConstant(Operation):
    """`x + c`, `x - c`, `x * c`, `x / c` or `c - x`, where c is a number or a twin."""

    has_extra = True

    def __init__(self, kind: str, constant: Any) -> None:
        super().__init__()
        self.name, self._constant = kind, constant
        self.fresh = kind not in ("add", "sub")
        self.passes = not self.fresh

    def per_channel(self, channels: int) -> Node | float | None:
        """The constant if it is a number, or a node with one value or one per channel of [N, C, H, W]; else None."""
        if not isinstance(self._constant, Node):
            return float(self._constant)
        shape = tuple(self._constant.meta["val"].shape)
        wanted = ((channels, 1, 1), (1, channels, 1, 1), (1, 1, 1), (1,), ())
        return self._constant if shape in wanted else None

    def bind(self, parameters: Parameters) -> None:
        if isinstance(self._constant, Node):
            self._constant = parameters.plain(self._constant)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        function = {"rsub": torch.rsub}.get(self.name) or getattr(torch, self.name)
        return self.clamp_(function(x, self._constant)), x.shape

    def backward(
        self, grad: Tensor, inputs: Sequence[Tensor | None], output: Tensor | None, extra: Any
    ) -> Gradients:
        if self.name == "mul":
            grad = grad * self._constant
        elif self.name == "div":
            grad = grad / self._constant
        elif self.name == "rsub":
            grad = -grad
        return (sum_to(grad, extra),)


def sum_to(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of a value of this shape that was broadcast to grad's: grad summed over the broadcast dimensions."""
    return grad if grad.shape == shape else grad.sum_to_size(shape)
