"""Turn a graph of ATen calls into the steps of a program: one rule per kind of call, autograd for the rest."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from iaat_fast.attacks.gradients.program import operations
from iaat_fast.attacks.gradients.program.calls import (
    BATCH_NORMS,
    CREATIONS,
    Dependence,
    Identity,
    Lowered,
    arguments_of,
    aten,
    shape_of,
)
from iaat_fast.attacks.gradients.program.exported import ExportedForward
from iaat_fast.attacks.gradients.program.layer_rules import LAYER_RULES
from iaat_fast.attacks.gradients.program.segment import Segment, SizeArithmetic
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
# Cheap calls, which do not end the current segment, but become part of it if they read its values.
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
        dtype: of the program; None for the live model's.
        channels_last: whether images are stored channels last.

    Attributes:
        steps: the result.
        images: the step of the images.
        static: nodes that depend on the model's tensors only, in order.
    """

    def __init__(
        self, exported: ExportedForward, dtype: torch.dtype | None, *, channels_last: bool
    ) -> None:
        self.exported = exported
        self.steps = Steps()
        self.static: list[Node] = [n for n in exported.nodes if n in exported.live]
        self._is_static = set(self.static)
        self._dependence = Dependence(self._is_static)
        self._step_of: dict[Node, Step] = {}
        self._segment_nodes: list[Node] = []
        self._traced_dtype: torch.dtype = exported.images.meta["val"].dtype
        self._dtype = dtype
        for node in exported.nodes:
            if node is exported.images:
                images = operations.Images(None, dtype, channels_last=channels_last)
                self.images = self._step_of[node] = self.steps.add(images, [], shape_of(node))
            elif node not in self._is_static:
                self._lower(node)
        self._end_segment()
        self.steps.result = self._step_of[exported.logits]
        self.steps.drop_unused()

    def _lower(self, node: Node) -> None:
        """Make a step of a node, or add it to the static nodes or to the current segment."""
        read = node.all_input_nodes
        decides = read[1:] if node.target in CREATIONS else read
        if all(n in self._is_static for n in decides) and node.op != "placeholder":
            self.static.append(node)
            self._is_static.add(node)
            return
        inside = [n for n in read if n in self._segment_nodes]
        if inside and (node.target in _CHEAP or self._rule(node) is None):
            self._segment_nodes.append(node)
            return
        if inside:
            self._end_segment()
        lowered = self._rule(node)
        if lowered is None:
            self._end_segment()
            self._segment_nodes.append(node)
            return
        operation, inputs = lowered
        if isinstance(operation, Identity):
            self._step_of[node] = self._step_of[inputs[0]]
            return
        if not isinstance(operation, SizeArithmetic):
            self._end_segment()
        self._step_of[node] = self.steps.add(
            operation, [self._step_of[n] for n in inputs], shape_of(node)
        )

    def _rule(self, node: Node) -> Lowered | None:
        """The operation of a node and the nodes it reads; None if there is no rule for this form of the call."""
        if node.target is operator.getitem:
            source = node.args[0]
            if isinstance(source, Node) and source.target in BATCH_NORMS and node.args[1] == 0:
                return Identity(), [source]
            return part_of_split(self._dependence, source, node.args[1])
        if _is_size_arithmetic(node):
            read = list(dict.fromkeys(node.all_input_nodes))
            places = {n: i for i, n in enumerate(read)}
            return SizeArithmetic(node.target, node.args, places), read
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        arguments = arguments_of(node)
        first: Any = next(iter(arguments.values()), None)
        if node.target in _IDENTITIES:
            return (Identity(), [first]) if self._dependence.depends_on_images(first) else None
        if node.target in _CASTS:
            same = arguments.get("dtype") in (
                None,
                self._traced_dtype,
            ) and self._dependence.depends_on_images(first)
            return (Identity(), [first]) if same else None
        rule = _RULES.get(node.target)
        return None if rule is None else rule(self._dependence, node, arguments)

    def _end_segment(self) -> None:
        """Make a segment of the nodes collected so far, if any."""
        nodes, self._segment_nodes = self._segment_nodes, []
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
            dtypes=(self._traced_dtype, self._dtype or self._traced_dtype),
        )
        step = self.steps.add(segment, [self._step_of[n] for n in inputs], ())
        for position, node in enumerate(outputs):
            self._step_of[node] = self.steps.add(operations.Pick(position), [step], shape_of(node))


def _is_size_arithmetic(node: Node) -> bool:
    """Whether a node reads a size, or computes with Python numbers."""
    if node.target in (aten.sym_size.int, aten.sym_size.default):
        return True
    return callable(node.target) and getattr(node.target, "__module__", "") == "_operator"
