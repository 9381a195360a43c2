"""Rules (`calls.Rule`) for convolutions, linear layers, BatchNorm, activations, pooling and arithmetic.

A rule returns None for forms of a call that it does not support; they are then left to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from iaat_fast.attacks.gradients.program import layers, operations, reductions
from iaat_fast.attacks.gradients.program.calls import (
    BATCH_NORMS,
    Arguments,
    Dependence,
    Lowered,
    Rule,
    as_list,
    aten,
    shape_of,
)
from iaat_fast.attacks.gradients.program.parameters import Affine, Norm


def _convolution(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not graph.varies(x) or not graph.constant(weight) or not _constant_or_none(graph, bias):
        return None
    dims = len(shape_of(weight)) - 2
    if len(shape_of(x)) != dims + 2 or isinstance(a["padding"], str):
        return None
    transposed = "transpose" in str(node.target) or a.get("transposed", False)
    made = layers.Convolution(
        Affine(weight, bias, out_dim=1 if transposed else 0),
        as_list(a["stride"], dims),
        as_list(a["padding"], dims),
        as_list(a["dilation"], dims),
        a["groups"],
        transposed=transposed,
        output_padding=as_list(a.get("output_padding", 0), dims),
    )
    if transposed and a["groups"] > 1 and bias is not None:
        return None
    return made, [x]


def _linear(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not graph.varies(x) or not graph.constant(weight) or not _constant_or_none(graph, bias):
        return None
    return layers.Linear(Affine(weight, bias)), [x]


def _batch_norm(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    rest = [a["weight"], a["bias"], a["running_mean"], a["running_var"]]
    if a.get("training", False) or rest[2] is None or not graph.varies(a["input"]):
        return None
    if not _constant_or_none(graph, *rest):
        return None
    weight, bias, mean, variance = rest
    return operations.ScaleShift(Norm(weight, bias, mean, variance, a["eps"])), [a["input"]]


def _clamp(
    floor: float, ceiling: float, graph: Dependence, node: Node, a: Arguments
) -> Lowered | None:
    x = next(iter(a.values()))
    return (operations.Clamp(floor, ceiling), [x]) if graph.varies(x) else None


def _hardtanh(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    return _clamp(float(a["min_val"]), float(a["max_val"]), graph, node, a)


def _pointwise(
    forward: Callable[..., Tensor],
    backward: Callable[..., Tensor],
    graph: Dependence,
    node: Node,
    a: Arguments,
    *,
    from_output: bool = False,
    names: tuple[str, ...] = (),
) -> Lowered | None:
    x = next(iter(a.values()))
    if not graph.varies(x):
        return None
    more = {name: a[name] for name in names}
    return (
        operations.Pointwise(
            str(node.target),
            partial(forward, **more),
            partial(backward, **more),
            from_output=from_output,
        ),
        [x],
    )


def _leaky_relu(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    slope = a["negative_slope"]
    return _pointwise(
        lambda x: aten.leaky_relu.default(x, slope),
        lambda grad, x: aten.leaky_relu_backward.default(grad, x, slope, False),
        graph,
        node,
        a,
    )


def _elu(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    shape = a["alpha"], a["scale"], a["input_scale"]
    return _pointwise(
        lambda x: aten.elu.default(x, *shape),
        lambda grad, x: aten.elu_backward.default(grad, *shape, False, x),
        graph,
        node,
        a,
    )


def _sum_or_product(kind: str, graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, other = a["self"], a["other"]
    if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
        return None
    if graph.varies(x) and graph.varies(other):
        both = {"add": operations.Add, "mul": operations.Mul}.get(kind)
        return None if both is None else (both(), [x, other])
    if graph.varies(x) and graph.constant(other):
        return _with_constant(kind, node, x, other)
    if graph.varies(other) and graph.constant(x) and kind not in ("div", "rsub"):
        return _with_constant("rsub" if kind == "sub" else kind, node, other, x)
    return None


def _with_constant(kind: str, node: Node, x: Node, constant: Any) -> Lowered | None:
    if isinstance(constant, Node) and not constant.meta["val"].is_floating_point():
        return None
    if kind == "rsub" and not isinstance(constant, Node):
        return operations.WithConstant(kind, float(constant)), [x]
    if kind == "rsub":
        return None
    return operations.WithConstant(kind, constant), [x]


def _matmul(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    both = [a["self"], a["other"]]
    if not all(graph.varies(value) and len(shape_of(value)) >= 2 for value in both):
        return None
    return operations.Matmul(), both


def _max_pool(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    if not graph.varies(a["self"]) or len(shape_of(a["self"])) != 4:
        return None
    kernel, stride, padding, dilation = (
        as_list(a[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    return layers.MaxPool(kernel, stride, padding, dilation, a["ceil_mode"]), [a["self"]]


def _avg_pool(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    if not graph.varies(a["self"]) or len(shape_of(a["self"])) != 4:
        return None
    kernel = as_list(a["kernel_size"], 2)
    stride = as_list(a["stride"], 2) or kernel
    rest = (as_list(a["padding"], 2), a["ceil_mode"], a["count_include_pad"], a["divisor_override"])
    return layers.AvgPool(kernel, stride, *rest), [a["self"]]


def _adaptive_avg_pool(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, size = a["self"], a["output_size"]
    if not graph.varies(x) or len(shape_of(x)) != 4 or not all(isinstance(s, int) for s in size):
        return None
    if list(size) == [1, 1]:
        return reductions.Mean([2, 3], True), [x]
    return layers.AdaptiveAvgPool(size), [x]


def _mean_or_sum(
    operation: type[reductions.Mean | reductions.Sum], graph: Dependence, node: Node, a: Arguments
) -> Lowered | None:
    x, dims = a["self"], a["dim"]
    if not graph.varies(x) or not dims or a["dtype"] is not None:
        return None
    rank = len(shape_of(x))
    dims = [dim % rank for dim in dims]
    return None if 0 in dims else (operation(dims, a["keepdim"]), [x])


def _softmax(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    dim = a["dim"] % max(len(shape_of(node)), 1)
    if not graph.varies(a["self"]) or a["dtype"] is not None or dim == 0:
        return None
    return reductions.Softmax(dim), [a["self"]]


def _layer_norm(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, shape, weight, bias = a["input"], a["normalized_shape"], a["weight"], a["bias"]
    known = all(isinstance(size, int) for size in shape)
    if not graph.varies(x) or not known or not _constant_or_none(graph, weight, bias):
        return None
    return reductions.LayerNorm(shape, weight, bias, a["eps"]), [x]


def _group_norm(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not graph.varies(x) or not _constant_or_none(graph, weight, bias):
        return None
    return reductions.GroupNorm(a["num_groups"], weight, bias, a["eps"]), [x]


def _constant_or_none(graph: Dependence, *values: Any) -> bool:
    return all(value is None or graph.constant(value) for value in values)


def _upsample_nearest(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, size, scales = a["input"], a["output_size"], a["scale_factors"]
    known = size is None or all(isinstance(n, int) for n in size)
    return (layers.UpsampleNearest(size, scales), [x]) if graph.varies(x) and known else None


LAYER_RULES: dict[Any, Rule] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.convolution.default: _convolution,
    aten.linear.default: _linear,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    aten.relu.default: partial(_clamp, 0.0, math.inf),
    aten.relu6.default: partial(_clamp, 0.0, 6.0),
    aten.hardtanh.default: _hardtanh,
    aten.sigmoid.default: partial(
        _pointwise, torch.sigmoid, aten.sigmoid_backward.default, from_output=True
    ),
    aten.tanh.default: partial(
        _pointwise, torch.tanh, aten.tanh_backward.default, from_output=True
    ),
    aten.silu.default: partial(_pointwise, aten.silu.default, aten.silu_backward.default),
    aten.gelu.default: partial(
        _pointwise, aten.gelu.default, aten.gelu_backward.default, names=("approximate",)
    ),
    aten.hardswish.default: partial(
        _pointwise, aten.hardswish.default, aten.hardswish_backward.default
    ),
    aten.hardsigmoid.default: partial(
        _pointwise, aten.hardsigmoid.default, aten.hardsigmoid_backward.default
    ),
    aten.mish.default: partial(_pointwise, aten.mish.default, aten.mish_backward.default),
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    **{
        getattr(aten, kind).Tensor: partial(_sum_or_product, kind)
        for kind in ("add", "sub", "mul", "div")
    },
    **{
        getattr(aten, kind).Scalar: partial(_sum_or_product, kind)
        for kind in ("add", "sub", "mul", "div", "rsub")
    },
    aten.matmul.default: _matmul,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.upsample_nearest2d.vec: _upsample_nearest,
    aten.mean.dim: partial(_mean_or_sum, reductions.Mean),
    aten.sum.dim_IntList: partial(_mean_or_sum, reductions.Sum),
    aten.softmax.int: _softmax,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
}
