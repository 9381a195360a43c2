"""The operations of a program: what each gives, and the gradients of what it read.

`forward` maps the inputs' values to the output; where `has_extra`, it returns (output, extra), and `extra` is handed to
`backward`, which maps the output's gradient to those of the inputs. An operation that makes a new tensor may end in an
activation, a clamp to [floor, ceiling]: ReLU is [0, infinity]. The clamp's gradient is not in `backward`: the reverse
pass fuses it with the sum of gradients (`straight_line.py`). Values [N, ...] depend on the images; what depends on the
weights alone is a twin (`parameters.py`).
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
    """An operation on values that depend on the images: the base of all.

    Attributes:
        keeps: positions of the inputs whose values `backward` reads.
        keeps_output: whether it reads the output.
        fresh: whether the gradients it returns are tensors of their own, which may be overwritten.
        owns_output: whether its output is a tensor of its own, so that a clamp may follow in place.
    """

    name = ""
    keeps: tuple[int, ...] = ()
    keeps_output = False
    fresh = True
    owns_output = True
    has_extra = False

    def __init__(self) -> None:
        self.floor, self.ceiling = -math.inf, math.inf

    @property
    def clamps(self) -> bool:
        return self.floor > -math.inf or self.ceiling < math.inf

    def bind(self, parameters: Parameters) -> None:
        """Take the twins it reads; called once what is folded into them is decided."""

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


class Images(Operation):
    """The images, as the first layer reads them: normalisation's shift, the program's precision and memory format."""

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
        self.raw = False  # the stem reads the images themselves

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
        # Subtracted before it is rounded, in one pass with the change of precision and layout.
        return torch.sub(x, self.shift, out=torch.empty_like(x, dtype=dtype, memory_format=layout))


class ScaleShift(Operation):
    """BatchNorm in eval mode that no layer takes in, with the residual before it and the clamp after it in one pass.

    A second input is added to the first, in place, before: the first then holds the sum.
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
        """The gradient of the sum before it, written over grad; `residual` is what else reaches that sum."""
        _scale_shift_relu_backward_(grad, output, self._scale, residual, self.floor, self.ceiling)
        return grad


class Clamp(Operation):
    """ReLU, ReLU6 or hardtanh by itself, of a value that others read, too."""

    name = "clamp"
    fresh = False

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
    """A smooth activation: `forward(x)` and its derivative from the input or from the output."""

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
    """The product of two values, either of which may be broadcast: a gate of squeeze and excitation, say."""

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


class WithConstant(Operation):
    """`x + c`, `x - c`, `x * c`, `x / c` or `c - x`, where c is a number or a twin."""

    has_extra = True

    def __init__(self, kind: str, constant: Any) -> None:
        super().__init__()
        self.name, self._constant = kind, constant
        self.fresh = kind not in ("add", "sub")

    def per_channel(self, channels: int) -> Node | float | None:
        """The constant, where it is a number or holds one for each channel of images; else None."""
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
    """The gradient of a value of this shape that was broadcast to grad's: summed over what it was repeated along."""
    return grad if grad.shape == shape else grad.sum_to_size(shape)
