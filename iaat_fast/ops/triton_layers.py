"""The passes of a network under attack in Triton; `triton.py` hands them to the dispatcher with the other ops."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from iaat_fast.ops.layout import channels_of, in_one_layout, like, memory_format
from iaat_fast.ops.storage import written
from iaat_fast.ops.triton_kernels import layers
from iaat_fast.ops.triton_launch import BITS, VECTORS, WARPS, on, wide


def relu_backward_(
    grad: Tensor, out: Tensor, other: Tensor | None, floor: float, ceiling: float
) -> None:
    target, out = in_one_layout(grad, out)
    vec = 16 // grad.element_size()
    vec = vec if grad.numel() % vec == 0 else 1
    tensors = (target, out, like(target, other))
    _launch(layers.relu_backward, *tensors, **_blocking(floor, ceiling), VEC=vec)
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
    bounds = {"floor": floor, "ceiling": ceiling}
    _launch(layers.scale_shift_relu, *tensors, **_channels(target), **bounds)
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
    bounds = _blocking(floor, ceiling)
    _launch(layers.scale_shift_relu_backward, *tensors, **_channels(target), **bounds)
    written(grad, target)


def _blocking(floor: float, ceiling: float) -> dict[str, float]:
    """The bounds that decide where the gradient is blocked; NaN, which no comparison meets, for an infinite one."""
    return {
        "floor": math.nan if floor == -math.inf else floor,
        "ceiling": math.nan if ceiling == math.inf else ceiling,
    }


def _channels(x: Tensor) -> dict[str, Any]:
    """Where the channels of a dense x lie, and the widest vectors that do not straddle two of them unawares."""
    channels, inner = channels_of(x)
    if channels == 1:
        inner = x.numel()
    vec = 16 // x.element_size()
    neighbours = inner == 1 and channels % vec == 0
    if not neighbours and inner % vec:
        vec = 1
    return {"channels": channels, "inner": inner, "NEIGHBOURS": neighbours, "VEC": vec}


def _launch(kernel: Any, first: Tensor, *others: Tensor | None, VEC: int, **arguments: Any) -> None:
    """One program per VECTORS times 16 bytes of tensors of one layout."""
    elements = first.numel()
    if not elements:
        return
    vectors, height = elements // VEC, VECTORS * 16 // first.element_size() // VEC
    with on(first.device):
        kernel[(triton.cdiv(vectors, height),)](
            first,
            *others,
            vectors=vectors,
            WIDE=wide(elements + height * VEC),
            HEIGHT=height,
            VEC=VEC,
            num_warps=WARPS,
            **arguments,
            **BITS,
        )
