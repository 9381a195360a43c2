"""Calls that write in place, made functional where no other value lies in the memory that they write to."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node


def writes(node: Node) -> bool:
    """Whether a call changes one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def make_functional(graph: Graph) -> bool:
    """Turn each `relu_` into a `relu`, in place; False, with nothing changed, where one of them has to be run as it is.

    torch's own decomposition does it for any graph, by tracing it three times more: seconds for a deep network. Here a
    call is taken if the memory it writes to held one value and what such calls made of it; views may come later.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    sharing: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            sharing[node.meta["val"].untyped_storage()._cdata].append(node)
    functional = {}
    for node in filter(writes, graph.nodes):
        functional[node] = _functional(node)
        values = sharing[node.meta["val"].untyped_storage()._cdata]
        earlier = values[1 : values.index(node)]
        alone = values[0].op == "call_function" and all(map(writes, earlier))
        if functional[node] is None or not (alone or _is_idle_dropout(node)):
            return False
    for node, target in functional.items():
        written: Any = node.args[0]
        node.target = target
        written.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])
    return True


def _is_idle_dropout(node: Node) -> bool:
    """Whether a call is dropout in eval mode, which leaves its argument as it is."""
    idle = (torch.ops.aten.dropout_.default, torch.ops.aten.feature_dropout_.default)
    return node.target in idle and node.args[2] is False


def _functional(node: Node) -> torch._ops.OpOverload | None:
    """The call that returns what this one writes to its first argument, None where there is none."""
    written = node.target
    assert isinstance(written, torch._ops.OpOverload)
    values = [n.meta.get("val") for n in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor)}
    # Of several dtypes the result of the one has the first argument's, of the other that of all.
    if not written._opname.endswith("_") or not isinstance(node.meta.get("val"), Tensor):
        return None
    packet = getattr(getattr(torch.ops, written.namespace), written._opname[:-1], None)
    found = getattr(packet, written._overloadname, None)
    if len(dtypes) != 1 or not isinstance(found, torch._ops.OpOverload):
        return None
    types = [[str(a.type) for a in call._schema.arguments] for call in (written, found)]
    return found if types[0] == types[1] and not found._schema.is_mutable else None
