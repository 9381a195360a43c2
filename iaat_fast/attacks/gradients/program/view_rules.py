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


def _copy(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """`aten.copy`, which decomposing an in-place write leaves behind: its value is the source."""
    new, old = a["src"], a["self"]
    if not graph.varies(new) or shape_of(new) != shape_of(node):
        return None
    same = isinstance(old, Node) and old.meta["val"].dtype == new.meta["val"].dtype
    return (Identity(), [new]) if same else None


def _cat(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    parts = a["tensors"]
    if not all(graph.varies(part) for part in parts):
        return None
    dim = a["dim"] % len(shape_of(node))
    return (views.Cat(dim), list(parts)) if dim > 0 else None


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
    x = a["self"]
    start, end = a["start"] or 0, 2**63 - 1 if a["end"] is None else a["end"]
    if not graph.varies(x) or not all(isinstance(n, int) for n in (start, end, a["step"])):
        return None
    return views.Slice(a["dim"], start, end, a["step"]), [x]


def _split(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    """The whole input; `part_of_split` makes the slices."""
    known = graph.varies(a["self"]) and shape_of(a["self"])[a["dim"]] is not None
    return (Identity(), [a["self"]]) if known else None


def part_of_split(graph: Dependence, source: Any, position: Any) -> Lowered | None:
    """The rule for getitem of a split: one of its tensors, as a slice; None if `source` is not a split."""
    if not isinstance(source, Node) or source.target not in SPLITS:
        return None
    a = arguments_of(source)
    if _split(graph, source, a) is None:
        return None
    x, dim = a["self"], a["dim"]
    sizes = [part.shape[dim] for part in source.meta["val"]]
    start = sum(sizes[:position])
    return views.Slice(dim, start, start + sizes[position]), [x]


def _pad(graph: Dependence, node: Node, a: Arguments) -> Lowered | None:
    if not graph.varies(a["self"]) or a.get("mode", "constant") != "constant":
        return None
    border = list(a["pad"])
    if not all(isinstance(width, int) for width in border):
        return None
    return views.Pad(border, float(a["value"] or 0)), [a["self"]]


VIEW_RULES: dict[Any, Rule] = {
    aten.copy.default: _copy,
    aten.cat.default: _cat,
    **dict.fromkeys(
        (aten.view.default, aten._unsafe_view.default, aten.reshape.default),
        partial(_sized, views.Reshape),
    ),
    aten.expand.default: partial(_sized, views.Expand),
    aten.expand_as.default: _expand_as,
    aten.flatten.using_ints: _flatten,
    aten.squeeze.dim: _one_more_or_less,
    aten.squeeze.dims: _one_more_or_less,
    aten.unsqueeze.default: _one_more_or_less,
    aten.unflatten.int: _one_more_or_less,
    aten.permute.default: _permute,
    aten.transpose.int: _permute,
    aten.slice.Tensor: _slice,
    **dict.fromkeys(SPLITS, _split),
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
