"""The passes of a network under attack in Triton; `triton.py` hands them to the dispatcher with the other ops."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from iaat_fast.ops.layout import channels_of, in_one_layout, like, memory_format, written
from iaat_fast.ops.triton_kernels import layers
from iaat_fast.ops.triton_launch import BITS, VECTORS, WARPS, on, wide


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> None:
    target, out = in_one_layout(grad, out)
    vec = 16 // grad.element_size()
    vec = vec if grad.numel() % vec == 0 else 1
    tensors = (target, out, like(target, other))
    _launch(layers.relu_backward, tensors, vec, _blocking(floor, ceiling))
    written(grad, target)


def scale_shift_relu(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    floor: float,
    ceiling: float,
) -> Tensor:
    (target,) = in_one_layout(x)
    out = torch.empty_like(x, memory_format=memory_format(x))
    tensors = (out, target, like(target, residual), scale.contiguous(), shift.contiguous())
    vec, where = _channels(target)
    _launch(layers.scale_shift_relu, tensors, vec, where | {"floor": floor, "ceiling": ceiling})
    if residual is not None:
        written(x, target)
    return out


def scale_shift_relu_backward_(
    grad: Tensor,
    out: Tensor,
    scale: Tensor,
    residual: Tensor | None,
    floor: float,
    ceiling: float,
) -> None:
    target, out = in_one_layout(grad, out)
    tensors = (target, out, scale.contiguous(), like(target, residual))
    vec, where = _channels(target)
    _launch(layers.scale_shift_relu_backward, tensors, vec, where | _blocking(floor, ceiling))
    written(grad, target)


def _blocking(floor: float, ceiling: float) -> dict[str, Any]:
    """The bounds that decide where the gradient is blocked; NaN, which no comparison meets, for an infinite one."""
    return {
        "floor": math.nan if floor == -math.inf else floor,
        "ceiling": math.nan if ceiling == math.inf else ceiling,
    }


def _channels(x: Tensor) -> tuple[int, dict[str, Any]]:
    """The longest vectors of a dense x that have one channel, or neighbouring ones each; and where the channels lie."""
    channels, inner = channels_of(x)
    if channels == 1:
        inner = x.numel()
    vec = 16 // x.element_size()
    neighbours = inner == 1 and channels % vec == 0
    if not neighbours and inner % vec:
        vec = 1
    return vec, {"channels": channels, "inner": inner, "NEIGHBOURS": neighbours}


def _launch(
    kernel: Any, tensors: tuple[Tensor | None, ...], vec: int, arguments: dict[str, Any]
) -> None:
    """One program per VECTORS times 16 bytes of the first of the tensors."""
    first = tensors[0]
    assert first is not None
    elements = first.numel()
    if not elements:
        return
    vectors, height = elements // vec, VECTORS * 16 // first.element_size() // vec
    with on(first.device):
        kernel[(triton.cdiv(vectors, height),)](
            *tensors,
            vectors=vectors,
            WIDE=wide(elements + height * vec),
            HEIGHT=height,
            VEC=vec,
            num_warps=WARPS,
            **arguments,
            **BITS,
        )
