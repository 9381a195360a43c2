"""From a graph of ATen calls to the steps of a program: one rule per kind of call, autograd for the rest."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from iaat_fast.attacks.program import layers, operations
from iaat_fast.attacks.program.exported import ExportedForward
from iaat_fast.attacks.program.operations import Operation
from iaat_fast.attacks.program.parameters import Affine, Norm
from iaat_fast.attacks.program.segment import OnSizes, Pick, Segment
from iaat_fast.attacks.program.steps import Step, Steps

aten = torch.ops.aten

Arguments = dict[str, Any]
Lowered = tuple[Operation, list[Node]]
"""An operation and the nodes that it reads."""

_IDENTITIES = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
}
_CASTS = {aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout}
_SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}
_BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
# What a segment that is open takes in, rather than being closed by it.
_CHEAP = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.sub.Tensor,
}


class Lowering:
    """Builds the steps of one graph.

    Args:
        exported: the graph.
        dtype: of the program, None for the live model's.
        channels_last: whether images are to lie channels last.
    """

    def __init__(
        self, exported: ExportedForward, dtype: torch.dtype | None, *, channels_last: bool
    ) -> None:
        self.exported = exported
        self.steps = Steps()
        self.static: list[Node] = [n for n in exported.nodes if n in exported.live]
        self._is_static = set(self.static)
        self._of: dict[Node, Step] = {}
        self._open: list[Node] = []
        self._traced: torch.dtype = exported.images.meta["val"].dtype
        self._dtype = dtype
        for node in exported.nodes:
            if node is exported.images:
                images = operations.Images(None, dtype, channels_last=channels_last)
                self.images = self._of[node] = self.steps.add(images, [], _shape(node))
            elif node not in self._is_static:
                self._take(node)
        self._close()
        self.steps.result = self._of[exported.logits]
        self.steps.drop_unused()

    def _take(self, node: Node) -> None:
        read = node.all_input_nodes
        if all(n in self._is_static for n in read) and node.op != "placeholder":
            self.static.append(node)
            self._is_static.add(node)
            return
        inside = [n for n in read if n in self._open]
        if inside and (node.target in _CHEAP or self._rule(node) is None):
            self._open.append(node)
            return
        if inside:
            self._close()
        lowered = self._rule(node)
        if lowered is None:
            self._close()
            self._open.append(node)
            return
        operation, inputs = lowered
        if isinstance(operation, _Same):
            self._of[node] = self._of[inputs[0]]
            return
        if not isinstance(operation, OnSizes):
            self._close()
        self._of[node] = self.steps.add(operation, [self._of[n] for n in inputs], _shape(node))

    def _rule(self, node: Node) -> Lowered | None:
        """The operation of a node; None where there is none, or the call has a form that it does not do."""
        if node.target is operator.getitem:
            source = node.args[0]
            if isinstance(source, Node) and source.target in _BATCH_NORMS and node.args[1] == 0:
                return _Same(), [source]
            return _part(self, source, node.args[1])
        if _on_sizes(node):
            read = list(dict.fromkeys(node.all_input_nodes))
            places = {n: i for i, n in enumerate(read)}
            return OnSizes(node.target, node.args, places), read
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        arguments = _arguments(node)
        first: Any = next(iter(arguments.values()), None)
        if node.target in _IDENTITIES:
            return (_Same(), [first]) if self._varies(first) else None
        if node.target in _CASTS:
            same = arguments.get("dtype") in (None, self._traced) and self._varies(first)
            return (_Same(), [first]) if same else None
        rule = RULES.get(node.target)
        return None if rule is None else rule(self, node, arguments)

    def _varies(self, value: Any) -> bool:
        return isinstance(value, Node) and value not in self._is_static

    def varies(self, value: Any) -> bool:
        """Whether an argument is a floating-point tensor that depends on the images."""
        return (
            self._varies(value)
            and isinstance(value.meta.get("val"), Tensor)
            and value.meta["val"].is_floating_point()
        )

    def constant(self, value: Any) -> bool:
        """Whether an argument is a number, or depends on the model's tensors alone."""
        return value in self._is_static if isinstance(value, Node) else value is not None

    def _close(self) -> None:
        """Make a segment of the nodes that are open."""
        nodes, self._open = self._open, []
        if not nodes:
            return
        within = set(nodes)
        inputs = list(
            dict.fromkeys(
                n
                for node in nodes
                for n in node.all_input_nodes
                if n not in within and n not in self._is_static
            )
        )
        outputs = [
            node
            for node in nodes
            if node is self.exported.logits or any(user not in within for user in node.users)
        ]
        norm_weights = {
            argument
            for node in nodes
            if "batch_norm" in str(node.target)
            for argument in node.all_input_nodes
            if argument in self._is_static
        }
        segment = Segment(
            nodes,
            inputs,
            outputs,
            static=self._is_static,
            keep_dtype=norm_weights,
            dtypes=(self._traced, self._dtype or self._traced),
        )
        step = self.steps.add(segment, [self._of[n] for n in inputs], ())
        for position, node in enumerate(outputs):
            self._of[node] = self.steps.add(Pick(position), [step], _shape(node))


class _Same(Operation):
    """Nothing is done."""


def _on_sizes(node: Node) -> bool:
    if node.target in (aten.sym_size.int, aten.sym_size.default):
        return True
    return callable(node.target) and getattr(node.target, "__module__", "") == "_operator"


def _shape(node: Node) -> tuple[int | None, ...]:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _arguments(node: Node) -> Arguments:
    """The arguments of a call by name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: Arguments = {}
    for position, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = (
            node.args[position]
            if position < len(node.args)
            else node.kwargs.get(argument.name, default)
        )
    return found


def _convolution(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not low.varies(x) or not low.constant(weight) or not (bias is None or low.constant(bias)):
        return None
    dims = len(_shape(weight)) - 2
    if len(_shape(x)) != dims + 2 or isinstance(a["padding"], str):
        return None
    transposed = "transpose" in str(node.target) or a.get("transposed", False)
    made = layers.Convolution(
        Affine(weight, bias, out_dim=1 if transposed else 0),
        _tuple(a["stride"], dims),
        _tuple(a["padding"], dims),
        _tuple(a["dilation"], dims),
        a["groups"],
        transposed=transposed,
        output_padding=_tuple(a.get("output_padding", 0), dims),
    )
    if transposed and a["groups"] > 1 and bias is not None:
        return None
    return made, [x]


def _linear(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not low.varies(x) or not low.constant(weight) or not (bias is None or low.constant(bias)):
        return None
    return layers.Linear(Affine(weight, bias)), [x]


def _batch_norm(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    rest = [a["weight"], a["bias"], a["running_mean"], a["running_var"]]
    if a.get("training", False) or rest[2] is None or not low.varies(a["input"]):
        return None
    if not all(value is None or low.constant(value) for value in rest):
        return None
    weight, bias, mean, variance = rest
    return operations.ScaleShift(Norm(weight, bias, mean, variance, a["eps"])), [a["input"]]


def _clamp(floor: float, ceiling: float, low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x = next(iter(a.values()))
    return (operations.Clamp(floor, ceiling), [x]) if low.varies(x) else None


def _hardtanh(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    return _clamp(float(a["min_val"]), float(a["max_val"]), low, node, a)


def _pointwise(
    forward: Callable[..., Tensor],
    backward: Callable[..., Tensor],
    low: Lowering,
    node: Node,
    a: Arguments,
    *,
    from_output: bool = False,
    names: tuple[str, ...] = (),
) -> Lowered | None:
    x = next(iter(a.values()))
    if not low.varies(x):
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


def _leaky_relu(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    slope = a["negative_slope"]
    return _pointwise(
        lambda x: aten.leaky_relu.default(x, slope),
        lambda grad, x: aten.leaky_relu_backward.default(grad, x, slope, False),
        low,
        node,
        a,
    )


def _elu(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    shape = a["alpha"], a["scale"], a["input_scale"]
    return _pointwise(
        lambda x: aten.elu.default(x, *shape),
        lambda grad, x: aten.elu_backward.default(grad, *shape, False, x),
        low,
        node,
        a,
    )


def _sum_or_product(kind: str, low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x, other = a["self"], a["other"]
    if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
        return None
    if low.varies(x) and low.varies(other):
        both = {"add": operations.Add, "mul": operations.Mul}.get(kind)
        return None if both is None else (both(), [x, other])
    if low.varies(x) and low.constant(other):
        return _with_constant(kind, node, x, other)
    if low.varies(other) and low.constant(x) and kind not in ("div", "rsub"):
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


def _cat(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    parts = a["tensors"]
    if not all(low.varies(part) for part in parts):
        return None
    dim = a["dim"] % len(_shape(node))
    return (operations.Cat(dim), list(parts)) if dim > 0 else None


def _max_pool(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    if not low.varies(a["self"]) or len(_shape(a["self"])) != 4:
        return None
    kernel, stride, padding, dilation = (
        _tuple(a[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    return layers.MaxPool(kernel, stride, padding, dilation, a["ceil_mode"]), [a["self"]]


def _avg_pool(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    if not low.varies(a["self"]) or len(_shape(a["self"])) != 4:
        return None
    kernel = _tuple(a["kernel_size"], 2)
    stride = _tuple(a["stride"], 2) or kernel
    rest = (_tuple(a["padding"], 2), a["ceil_mode"], a["count_include_pad"], a["divisor_override"])
    return layers.AvgPool(kernel, stride, *rest), [a["self"]]


def _adaptive_avg_pool(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x, size = a["self"], a["output_size"]
    if not low.varies(x) or len(_shape(x)) != 4 or not all(isinstance(s, int) for s in size):
        return None
    if list(size) == [1, 1]:
        return layers.Mean([2, 3], True), [x]
    return layers.AdaptiveAvgPool(size), [x]


def _mean(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x, dims = a["self"], a["dim"]
    if not low.varies(x) or not dims or a["dtype"] is not None:
        return None
    rank = len(_shape(x))
    dims = [dim % rank for dim in dims]
    if 0 in dims:
        return None
    return layers.Mean(dims, a["keepdim"]), [x]


def _sized(
    operation: type[operations.Reshape | operations.Expand],
    low: Lowering,
    node: Node,
    a: Arguments,
) -> Lowered | None:
    """What takes a list of sizes, of which some depend on the number of images."""
    x, size = a["self"], list(a["size"] if "size" in a else a["shape"])
    if not low.varies(x):
        return None
    read = list(dict.fromkeys(s for s in size if isinstance(s, Node)))

    def of(_: Tensor, *numbers: int) -> list[int]:
        known = dict(zip(read, numbers, strict=True))
        return [known[s] if isinstance(s, Node) else s for s in size]

    return operation(of), [x, *read]


def _flatten(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x, rank = a["self"], len(_shape(a["self"]))
    start, end = a["start_dim"] % rank, a["end_dim"] % rank
    if not low.varies(x):
        return None

    def of(value: Tensor) -> list[int]:
        shape = list(value.shape)
        return [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]

    return operations.Reshape(of), [x]


def _one_more_or_less(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    """squeeze, unsqueeze and unflatten: reshapes to the shape in the graph."""
    shape = _shape(node)
    if not low.varies(a["self"]) or None in shape[1:] or not shape or shape[0] is not None:
        return None
    return operations.Reshape(lambda x: [len(x), *shape[1:]]), [a["self"]]


def _permute(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    if not low.varies(a["self"]):
        return None
    dims = list(range(len(_shape(node))))
    if "dims" in a:
        dims = [dim % len(dims) for dim in a["dims"]]
    else:
        first, second = a["dim0"], a["dim1"]
        dims[first], dims[second] = dims[second], dims[first]
    return operations.Permute(dims), [a["self"]]


def _slice(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    x = a["self"]
    start, end = a["start"] or 0, 2**63 - 1 if a["end"] is None else a["end"]
    if not low.varies(x) or not all(isinstance(n, int) for n in (start, end, a["step"])):
        return None
    return operations.Slice(a["dim"], start, end, a["step"]), [x]


def _split(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    """Nothing by itself: `_part` takes the slices."""
    known = low.varies(a["self"]) and _shape(a["self"])[a["dim"]] is not None
    return (_Same(), [a["self"]]) if known else None


def _part(low: Lowering, source: Any, position: Any) -> Lowered | None:
    """One of the tensors that a split gives."""
    if not isinstance(source, Node) or source.target not in _SPLITS:
        return None
    a = _arguments(source)
    if _split(low, source, a) is None:
        return None
    x, dim = a["self"], a["dim"]
    sizes = [part.shape[dim] for part in source.meta["val"]]
    start = sum(sizes[:position])
    return operations.Slice(dim, start, start + sizes[position]), [x]


def _pad(low: Lowering, node: Node, a: Arguments) -> Lowered | None:
    if not low.varies(a["self"]) or a.get("mode", "constant") != "constant":
        return None
    border = list(a["pad"])
    if not all(isinstance(width, int) for width in border):
        return None
    return operations.Pad(border, float(a["value"] or 0)), [a["self"]]


def _tuple(value: Any, length: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * length if len(values) == 1 else values


RULES: dict[Any, Callable[[Lowering, Node, Arguments], Lowered | None]] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv_transpose1d.default: _convolution,
    aten.conv_transpose2d.input: _convolution,
    aten.conv_transpose3d.input: _convolution,
    aten.convolution.default: _convolution,
    aten.linear.default: _linear,
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
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
    aten.cat.default: _cat,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _mean,
    **dict.fromkeys(
        (aten.view.default, aten._unsafe_view.default, aten.reshape.default),
        partial(_sized, operations.Reshape),
    ),
    aten.expand.default: partial(_sized, operations.Expand),
    aten.flatten.using_ints: _flatten,
    aten.squeeze.dim: _one_more_or_less,
    aten.squeeze.dims: _one_more_or_less,
    aten.unsqueeze.default: _one_more_or_less,
    aten.unflatten.int: _one_more_or_less,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.slice.Tensor: _slice,
    **dict.fromkeys(_SPLITS, _split),
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
