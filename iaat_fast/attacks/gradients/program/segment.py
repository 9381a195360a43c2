"""Segments: parts of a forward without a rule, run call by call and differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

from iaat_fast.attacks.gradients.program.operations import (
    Gradients,
    MultiOutput,
    Operation,
)
from iaat_fast.attacks.gradients.program.parameters import Parameters

# The graph was traced with contiguous images; on channels_last memory its views may need a copy.
_ANY_LAYOUT: dict[Any, Any] = dict.fromkeys(
    (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default),
    torch.ops.aten.reshape.default,
)


class Segment(MultiOutput):
    """A sequence of nodes as one operation with several outputs, which `Pick` separates.

    Args:
        nodes: the nodes, in order.
        inputs: nodes outside the segment that it reads, in the order of the operation's inputs.
        outputs: nodes of the segment that are read outside.
        static: nodes that depend only on the model's tensors.
        keep_dtype: static nodes whose twins keep their dtype.
        dtypes: the dtype of the images in the graph, and that of the program.
    """

    name = "autograd"
    fresh = False

    def __init__(
        self,
        nodes: list[Node],
        inputs: list[Node],
        outputs: list[Node],
        *,
        static: set[Node],
        keep_dtype: set[Node],
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> None:
        super().__init__()
        self.nodes, self._inputs, self.outputs = nodes, inputs, outputs
        self.count = len(outputs)
        self._static, self._keep_dtype, self._dtypes = static, keep_dtype, dtypes

    def bind(self, parameters: Parameters) -> None:
        read = {n for node in self.nodes for n in node.all_input_nodes if n in self._static}
        self._twins = {
            node: parameters.plain(node, keep_dtype=node in self._keep_dtype) for node in read
        }
        traced, own = self._dtypes

        def lowered(value: Any) -> Any:
            return own if isinstance(value, torch.dtype) and value == traced else value

        self._calls = [
            (
                node,
                _ANY_LAYOUT.get(node.target, node.target),
                map_aggregate(node.args, lowered),
                map_aggregate(node.kwargs, lowered),
            )
            for node in self.nodes
        ]

    def forward(self, *inputs: Any) -> tuple[Any, Any]:
        leaves = [
            value.detach().requires_grad_()
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for value in inputs
        ]
        with torch.enable_grad():
            values: dict[Node, Any] = {
                **self._twins,
                **dict(zip(self._inputs, leaves, strict=True)),
            }
            for node, target, arguments, keywords in self._calls:
                assert callable(target)
                values[node] = target(
                    *map_arg(arguments, values.__getitem__), **map_arg(keywords, values.__getitem__)
                )
        results = [values[node] for node in self.outputs]
        detached = [r.detach() if isinstance(r, Tensor) else r for r in results]
        return detached, (leaves, results)

    def backward_all(self, grads: Sequence[Tensor | None], extra: Any) -> Gradients:
        leaves, results = extra
        reached = [
            (result, grad)
            for result, grad in zip(results, grads, strict=True)
            if grad is not None and result.requires_grad
        ]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        wanted = [leaf for leaf in tensors if leaf.requires_grad]
        found: dict[Tensor, Tensor | None] = {}
        if reached and wanted:
            grads_of_wanted = torch.autograd.grad(
                [result for result, _ in reached],
                wanted,
                [grad.to(result.dtype) for result, grad in reached],
                allow_unused=True,
            )
            found = dict(zip(wanted, grads_of_wanted, strict=True))
        return [self._or_zeros(leaf, found) for leaf in leaves]

    @staticmethod
    def _or_zeros(leaf: Any, found: dict[Tensor, Tensor | None]) -> Tensor | None:
        if not isinstance(leaf, Tensor):
            return None
        grad = found.get(leaf)
        return torch.zeros_like(leaf) if grad is None else grad


class SizeArithmetic(Operation):
    """Arithmetic on sizes, such as the number of images; it has no gradient.

    Args:
        target: the function.
        arguments: its arguments, which may contain nodes.
        places: {node: position among the operation's inputs}.
    """

    name = "sizes"
    owns_output = False

    def __init__(self, target: Any, arguments: tuple[Any, ...], places: dict[Node, int]) -> None:
        super().__init__()
        self._target, self._arguments, self._places = target, arguments, places

    def forward(self, *inputs: Any) -> Any:
        return self._target(*map_arg(self._arguments, lambda node: inputs[self._places[node]]))
