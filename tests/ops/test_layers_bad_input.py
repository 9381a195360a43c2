"""Bad input to a network's passes is refused with an error that names the argument, its value and what was expected."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from iaat_fast import ops

X = torch.zeros(4, 3)
CHANNELS = torch.ones(3)


def mask(**changes: Any) -> None:
    ops.relu_backward_(**{"grad": X.clone(), "out": X, "other": X, **changes})


def normalise(**changes: Any) -> None:
    arguments = {"x": X.clone(), "scale": CHANNELS, "shift": CHANNELS, "residual": X, **changes}
    ops.scale_shift_relu(**arguments)


def back(**changes: Any) -> None:
    arguments = {"grad": X.clone(), "out": X, "scale": CHANNELS, "residual": X, **changes}
    ops.scale_shift_relu_backward_(**arguments)


FIRST = [(mask, "grad"), (normalise, "x"), (back, "grad")]
OTHERS = [
    (mask, "out"),
    (mask, "other"),
    (normalise, "residual"),
    (back, "out"),
    (back, "residual"),
]
VALUES = [(normalise, "scale"), (normalise, "shift"), (back, "scale")]


@pytest.mark.parametrize("op", [mask, normalise, back])
def test_good_input_is_taken(op: Any) -> None:
    op()


@pytest.mark.parametrize(("op", "name"), FIRST)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating_point(op: Any, name: str, dtype: torch.dtype) -> None:
    message = rf"^{name}: dtype {dtype}, expected float32, float64, float16 or bfloat16$"
    with pytest.raises(TypeError, match=message):
        op(**{name: torch.zeros(4, 3, dtype=dtype)})


@pytest.mark.parametrize(("op", "name"), FIRST + OTHERS + VALUES)
def test_what_is_no_tensor(op: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: list, expected a torch\.Tensor"):
        op(**{name: [[0.5]]})


@pytest.mark.parametrize(("op", "name"), FIRST[1:])
def test_tensors_without_channels(op: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: shape \(4,\), expected \[N, C, \.\.\.\]"):
        op(**{name: torch.zeros(4)})


def test_a_mask_needs_no_channels() -> None:
    for shape in ((), (4,)):
        x = torch.ones(shape)
        assert ops.relu_backward_(x.clone(), x).equal(x)


@pytest.mark.parametrize(("op", "name"), OTHERS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 3), (4, 3, 1), (1, 3), (3,)])
def test_tensors_of_another_shape(op: Any, name: str, shape: tuple[int, ...]) -> None:
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"^{name}: shape {found}, expected that of (grad|x), \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        op(**{name: torch.zeros(shape)})


@pytest.mark.parametrize(("op", "name"), OTHERS)
def test_tensors_of_another_dtype_or_device(op: Any, name: str) -> None:
    message = rf"^{name}: dtype torch.bfloat16, expected that of (grad|x), torch.float32"
    with pytest.raises(TypeError, match=message):
        op(**{name: X.bfloat16()})
    with pytest.raises(ValueError, match=rf"^{name}: device meta, expected that of (grad|x), cpu"):
        op(**{name: X.to("meta")})


@pytest.mark.parametrize(("op", "name"), VALUES)
def test_values_per_channel_of_another_kind(op: Any, name: str) -> None:
    message = rf"^{name}: dtype torch.float64, expected torch.float32 for (grad|x) of torch.float32"
    with pytest.raises(TypeError, match=message):
        op(**{name: CHANNELS.double()})
    for shape in ((4,), (1,), (3, 1), ()):
        with pytest.raises(ValueError, match=rf"^{name}: shape .*, expected one value .*, \[3\]"):
            op(**{name: torch.ones(shape)})
    with pytest.raises(ValueError, match=rf"^{name}: device meta, expected that of (grad|x), cpu"):
        op(**{name: CHANNELS.to("meta")})


@pytest.mark.parametrize(("dtype", "expected"), [("half", "float32"), ("double", "float64")])
def test_values_per_channel_have_the_dtype_of_the_arithmetic(dtype: str, expected: str) -> None:
    x, scale = getattr(X, dtype)(), CHANNELS.bfloat16()
    with pytest.raises(
        TypeError, match=rf"^scale: dtype torch.bfloat16, expected torch.{expected}"
    ):
        ops.scale_shift_relu(x, scale, CHANNELS)


@pytest.mark.parametrize(("op", "name"), FIRST)
def test_what_is_overwritten_may_not_require_grad(op: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: requires grad, but it is written in place"):
        op(**{name: X.clone().requires_grad_()})


@pytest.mark.parametrize("op", [mask, normalise, back])
@pytest.mark.parametrize(("floor", "ceiling"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)])
def test_bounds_that_are_none(op: Any, floor: float, ceiling: float) -> None:
    message = rf"^floor, ceiling: {floor}, {ceiling}, expected floor <= ceiling"
    with pytest.raises(ValueError, match=message):
        op(floor=floor, ceiling=ceiling)
