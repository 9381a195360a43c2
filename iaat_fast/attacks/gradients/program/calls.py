"""Helpers of the rules: arguments and shapes of a call in a graph, and which of them depend on the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from iaat_fast.attacks.gradients.program.operations import Operation

aten = torch.ops.aten

Arguments = dict[str, Any]
Lowered = tuple[Operation, list[Node]]
"""An operation and the nodes that it reads."""
Rule = Callable[["Dependence", Node, Arguments], Lowered | None]
"""Maps a call to its operation and the nodes read; None for a form of the call that is not supported."""

SPLITS = (
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
)
CREATIONS = (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)
"""Calls that take only dtype and device from their first argument."""
BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


class Dependence:
    """Tells static nodes, which depend only on the model's tensors, from those that depend on images or their number.

    Args:
        static: the static nodes; the set may grow later.
    """

    def __init__(self, static: set[Node]) -> None:
        self.static = static

    def depends_on_images(self, value: Any) -> bool:
        """Whether an argument depends on the images or on their number."""
        return isinstance(value, Node) and value not in self.static

    def varies(self, value: Any) -> bool:
        """Whether an argument is a floating-point tensor that depends on the images."""
        return (
            self.depends_on_images(value)
            and isinstance(value.meta.get("val"), Tensor)
            and value.meta["val"].is_floating_point()
        )

    def constant(self, value: Any) -> bool:
        """Whether an argument is a number or a static node."""
        return value in self.static if isinstance(value, Node) else value is not None


class Identity(Operation):
    """Marks a call whose value is that of its input, so that no step is made."""


def shape_of(node: Node) -> tuple[int | None, ...]:
    """The shape of a node's tensor, with None for sizes that depend on the number of images; () for other values."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def arguments_of(node: Node) -> Arguments:
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


def as_list(value: Any, length: int) -> list[int]:
    """An argument as a list; one number stands for `length` equal ones."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * length if len(values) == 1 else values
