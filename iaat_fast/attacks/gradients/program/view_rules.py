"""Rules (`calls.Rule`) for calls that only move or select entries: reshape, permute, slice, concatenate, pad."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import Node

from iaat_fast.attacks.gradients.program import views
from iaat_fast.attacks.gradients.program.calls import (
    SPLITS,
    Arguments,
    Dependence,
    Identity,
    Lowered,
    Rule,
    arguments_of,
    aten,
    shape_of,
)

_END = 2**63 - 1  # the end of a slice that has none


def _copy(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """`aten.copy`, which decomposing an in-place write leaves behind: its value is the source."""
    new, old = a["src"], a["self"]
    if not graph.varies(new) or shape_of(new) != shape_of(node):
        return None
    same = isinstance(old, Node) and old.meta["val"].dtype == new.meta["val"].dtype
    return (Identity(), [new]) if same else None


def _joined(
    operation: type[views.Cat | views.Stack], graph: Dependence, node: Node, a: Arguments
) -> Lowered | None:
    """Concatenation or stacking, but not of batches."""
    parts = a["tensors"]
    dim = a["dim"] % len(shape_of(node))
    known = dim > 0 and all(graph.varies(part) for part in parts)
    return (operation(dim), list(parts)) if known else None


def _sized(
    operation: type[views.Reshape | views.Expand],
    graph: Dependence,
    node: Node,
    a: Arguments,
) -> Lowered | None:
    """Calls with a list of sizes, some of which may depend on the number of images."""
    x, size = a["self"], list(a["size"] if "size" in a else a["shape"])
    if not graph.varies(x):
        return None
    read = list(dict.fromkeys(s for s in size if isinstance(s, Node)))

    def of(_: Tensor, *numbers: int) -> list[int]:
        known = dict(zip(read, numbers, strict=True))
        return [known[s] if isinstance(s, Node) else s for s in size]

    return operation(of), [x, *read]


def _expand_as(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """Expand to the node's shape, if only its first size, like that of the input, is the number of images."""
    x, shape = a["self"], shape_of(node)
    counted = shape_of(x)[:1] == shape[:1] == (None,)
    if not graph.varies(x) or None in shape[1:] or not counted:
        return None
    return views.Expand(lambda x: [len(x), *shape[1:]]), [x]


def _flatten(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, rank = a["self"], len(shape_of(a["self"]))
    start, end = a["start_dim"] % rank, a["end_dim"] % rank
    if not graph.varies(x):
        return None

    def of(value: Tensor) -> list[int]:
        shape = list(value.shape)
        return [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]

    return views.Reshape(of), [x]


def _one_more_or_less(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """squeeze, unsqueeze and unflatten, as reshapes to the node's shape."""
    shape = shape_of(node)
    if not graph.varies(a["self"]) or None in shape[1:] or not shape or shape[0] is not None:
        return None
    return views.Reshape(lambda x: [len(x), *shape[1:]]), [a["self"]]


def _reshape_as(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """A reshape to the node's shape, of which the first size alone depends on the number of images."""
    shape = shape_of(node)
    if not graph.varies(a["self"]) or None in shape[1:] or shape[:1] != (None,) or 0 in shape:
        return None
    return views.Reshape(lambda x: [-1, *shape[1:]]), [a["self"]]


def _permute(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    if not graph.varies(a["self"]):
        return None
    dims = list(range(len(shape_of(node))))
    if "dims" in a:
        dims = [dim % len(dims) for dim in a["dims"]]
    else:
        first, second = a["dim0"], a["dim1"]
        dims[first], dims[second] = dims[second], dims[first]
    return views.Permute(dims), [a["self"]]


def _slice(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, step = a["self"], a["step"]
    where = _range(a, x)
    if not graph.varies(x) or where is None or not isinstance(step, int):
        return None
    dim, start, end = where
    if (start, step) == (0, 1) and end in (shape_of(x)[dim], _END):
        return Identity(), [x]
    return views.Slice(dim, start, end, step), [x]


def _slice_scatter(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """A write to all of a value, which decomposing an in-place operation on a full slice leaves behind: its source."""
    new, old = a["src"], a["self"]
    where = _range(a, old) if isinstance(old, Node) else None
    if not graph.varies(new) or where is None or a["step"] != 1:
        return None
    if old.meta["val"].dtype != new.meta["val"].dtype:
        return None
    dim, start, end = where
    return (Identity(), [new]) if start == 0 and end in (shape_of(old)[dim], _END) else None


def _range(a: Arguments, x: Node) -> tuple[int, int, int] | None:
    """The dimension, start and end of a slice of x, counted from 0; None if they depend on the number of images."""
    shape = shape_of(x)
    dim = a["dim"] % len(shape)
    size, start, end = shape[dim], a["start"] or 0, _END if a["end"] is None else a["end"]
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    if size is None:
        return dim, start, end
    start, end, _ = slice(start, end).indices(size)
    return dim, start, max(start, end)


def _select(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, position = a["self"], a["index"]
    if not graph.varies(x):
        return None
    dim = a["dim"] % len(shape_of(x))
    size = shape_of(x)[dim]
    if size is None or not isinstance(position, int):
        return None
    return views.Select(dim, position % size), [x]


def _split(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """The whole input; `part_of_split` makes the parts."""
    known = graph.varies(a["self"]) and shape_of(a["self"])[a["dim"]] is not None
    return (Identity(), [a["self"]]) if known else None


def part_of_split(graph: Dependence, source: Any, position: Any) -> Lowered | None:
    """The rule for getitem of a split: one of its tensors, as a slice or an entry; None if `source` is not a split."""
    if not isinstance(source, Node) or source.target not in SPLITS:
        return None
    a = arguments_of(source)
    if _split(graph, source, a) is None:
        return None
    x, dim = a["self"], a["dim"] % len(shape_of(a["self"]))
    if source.target is aten.unbind.int:
        return views.Select(dim, position), [x]
    sizes = [part.shape[dim] for part in source.meta["val"]]
    start = sum(sizes[:position])
    return views.Slice(dim, start, start + sizes[position]), [x]


def _roll(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    x, shifts, dims = a["self"], a["shifts"], a["dims"]
    if not graph.varies(x) or not dims or not all(isinstance(n, int) for n in shifts):
        return None
    known = all(shape_of(x)[dim] is not None for dim in dims)
    return (views.Roll(shifts, dims), [x]) if known else None


def _pad(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    if not graph.varies(a["self"]) or a.get("mode", "constant") != "constant":
        return None
    border = list(a["pad"])
    if not all(isinstance(width, int) for width in border):
        return None
    if not any(border):
        return Identity(), [a["self"]]
    return views.Pad(border, float(a["value"] or 0)), [a["self"]]


VIEW_RULES: dict[Any, Rule] = {
    aten.copy.default: _copy,
    aten.cat.default: partial(_joined, views.Cat),
    aten.stack.default: partial(_joined, views.Stack),
    **dict.fromkeys(
        (aten.view.default, aten._unsafe_view.default, aten.reshape.default),
        partial(_sized, views.Reshape),
    ),
    aten.expand.default: partial(_sized, views.Expand),
    aten.expand_as.default: _expand_as,
    aten.flatten.using_ints: _flatten,
    aten.reshape_as.default: _reshape_as,
    aten.view_as.default: _reshape_as,
    aten.squeeze.dim: _one_more_or_less,
    aten.squeeze.dims: _one_more_or_less,
    aten.unsqueeze.default: _one_more_or_less,
    aten.unflatten.int: _one_more_or_less,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _slice_scatter,
    aten.select.int: _select,
    **dict.fromkeys(SPLITS, _split),
    aten.roll.default: _roll,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
