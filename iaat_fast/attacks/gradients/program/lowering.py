"""From a graph of ATen calls to the steps of a program: one rule per kind of call, autograd for the rest."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from iaat_fast.attacks.gradients.program import operations
from iaat_fast.attacks.gradients.program.calls import (
    BATCH_NORMS,
    Dependence,
    Lowered,
    Same,
    arguments_of,
    aten,
    shape_of,
)
from iaat_fast.attacks.gradients.program.exported import ExportedForward
from iaat_fast.attacks.gradients.program.layer_rules import LAYER_RULES
from iaat_fast.attacks.gradients.program.segment import OnSizes, Pick, Segment
from iaat_fast.attacks.gradients.program.steps import Step, Steps
from iaat_fast.attacks.gradients.program.view_rules import VIEW_RULES, part_of_split

_RULES = {**LAYER_RULES, **VIEW_RULES}

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
        self._dependence = Dependence(self._is_static)
        self._of: dict[Node, Step] = {}
        self._open: list[Node] = []
        self._traced: torch.dtype = exported.images.meta["val"].dtype
        self._dtype = dtype
        for node in exported.nodes:
            if node is exported.images:
                images = operations.Images(None, dtype, channels_last=channels_last)
                self.images = self._of[node] = self.steps.add(images, [], shape_of(node))
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
        if isinstance(operation, Same):
            self._of[node] = self._of[inputs[0]]
            return
        if not isinstance(operation, OnSizes):
            self._close()
        self._of[node] = self.steps.add(operation, [self._of[n] for n in inputs], shape_of(node))

    def _rule(self, node: Node) -> Lowered | None:
        """The operation of a node; None where there is none, or the call has a form that it does not do."""
        if node.target is operator.getitem:
            source = node.args[0]
            if isinstance(source, Node) and source.target in BATCH_NORMS and node.args[1] == 0:
                return Same(), [source]
            return part_of_split(self._dependence, source, node.args[1])
        if _on_sizes(node):
            read = list(dict.fromkeys(node.all_input_nodes))
            places = {n: i for i, n in enumerate(read)}
            return OnSizes(node.target, node.args, places), read
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        arguments = arguments_of(node)
        first: Any = next(iter(arguments.values()), None)
        if node.target in _IDENTITIES:
            return (Same(), [first]) if self._dependence.changes(first) else None
        if node.target in _CASTS:
            same = arguments.get("dtype") in (None, self._traced) and self._dependence.changes(
                first
            )
            return (Same(), [first]) if same else None
        rule = _RULES.get(node.target)
        return None if rule is None else rule(self._dependence, node, arguments)

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
            self._of[node] = self.steps.add(Pick(position), [step], shape_of(node))


def _on_sizes(node: Node) -> bool:
    if node.target in (aten.sym_size.int, aten.sym_size.default):
        return True
    return callable(node.target) and getattr(node.target, "__module__", "") == "_operator"
