"""Export a model's forward to a functional graph of ATen calls, without changing the live model."""

from __future__ import annotations

import contextlib
import logging
import operator
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from iaat_fast.attacks import inputs
from iaat_fast.attacks.gradients.shadow import Unshadowable, brief, copy_modules, refuse_hooks

_NOISY_LOGGERS = (
    "torch.export",
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
)
# torch.export, warning filters and logger levels are global state: one thread exports at a time.
_exporting = threading.RLock()
_SIZE_FUNCTIONS = {
    getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")
}


class ExportedForward:
    """The ATen graph of a model's forward, for any number of images of one shape.

    Args:
        model: the live model, in the mode in which it is attacked. Its tensors are shared; nothing in it is changed.
        images: an example [N, ...]; only its shape without N, its dtype and its device matter.

    Attributes:
        nodes: the nodes that the logits depend on, in order.
        images, logits: the nodes of the argument and of the result.
        live: {node: live tensor} for each parameter, buffer and constant that the graph reads.

    Raises:
        Unshadowable: the model has hooks, cannot be copied or exported, fixes the number of images, draws random
            numbers, or returns anything but one tensor.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        refuse_hooks(model)
        program = _export(_structural_copy(model), images)
        signature = program.graph_signature
        returned = program.graph.output_node().args[0]
        results = [
            node
            for spec, node in zip(signature.output_specs, returned, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        if len(results) != 1:
            raise Unshadowable(f"it returns {len(results)} tensors")
        nodes = {node.name: node for node in program.graph.nodes}
        self.live: dict[Node, Tensor] = {}
        for spec in signature.input_specs:
            node = nodes[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                self.images = node
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                self.live[node] = _tensor_of(program, str(spec.target))
        self.logits = results[0]
        needed = _needed(self.logits)
        self.nodes = [node for node in program.graph.nodes if node in needed]
        self.live = {node: tensor for node, tensor in self.live.items() if node in needed}
        for node in self.nodes:
            _refuse_unknown(node)
        if self.images not in needed:
            raise Unshadowable("its result does not depend on the images")

    @torch.no_grad()
    def run(self, x: Tensor) -> Tensor:
        """Run the graph, call by call, on the live tensors: the logits [N, C] of images x [N, ...]."""
        values: dict[Node, Any] = {**self.live, self.images: x}
        for node in self.nodes:
            if node.op == "placeholder":
                continue
            assert callable(node.target)
            values[node] = node.target(
                *map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__)
            )
        logits: Tensor = values[self.logits]
        return logits


def _structural_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all tensors: exporting runs the forward, which may set attributes."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in _tensors_within(model)}
    return copy_modules(model, shared)


def _tensors_within(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors among the modules' attributes, also inside lists, tuples and dicts."""
    for module in model.modules():
        waiting: list[Any] = list(module.__dict__.values())
        while waiting:
            value = waiting.pop()
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, dict):
                waiting.extend(value.values())
            elif isinstance(value, (list, tuple)):
                waiting.extend(value)


class _Logits(nn.Module):
    """Wraps a model so that its graph returns only the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = inputs.logits_in(self.model(x))
        return logits


def _export(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Export for any number of images above 1, and replace in-place calls by functional ones.

    Raises Unshadowable if the model cannot be exported.
    """
    example = torch.zeros((2, *images.shape[1:]), dtype=images.dtype, device=images.device)
    try:
        with _exporting, _quiet_export(), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _Logits(model),
                (example,),
                dynamic_shapes=({0: Dim("images", min=2)},),
                strict=False,
            )
            if not _make_functional(program.graph):
                program = program.run_decompositions({})
    # Exporting runs the user's forward on tensors without values, which may raise anything.
    except Exception as error:
        raise Unshadowable(f"it cannot be exported ({brief(error)})") from error
    return program


def _writes(node: Node) -> bool:
    """Whether a call changes one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _make_functional(graph: Graph) -> bool:
    """Replace every in-place call of the graph (`relu_`) by its functional form (`relu`).

    Returns False, with nothing changed, if that is not safe for one of them. torch's decomposition handles any graph,
    but traces it three more times, which takes seconds for a deep network. Here a call is replaced if the memory that
    it overwrites has only held one value and results of such calls; views of it may follow later.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    sharing: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            sharing[node.meta["val"].untyped_storage()._cdata].append(node)
    functional = {}
    for node in filter(_writes, graph.nodes):
        functional[node] = _functional(node)
        values = sharing[node.meta["val"].untyped_storage()._cdata]
        earlier = values[1 : values.index(node)]
        alone = values[0].op == "call_function" and all(map(_writes, earlier))
        if functional[node] is None or not (alone or _is_idle_dropout(node)):
            return False
    for node, target in functional.items():
        written: Any = node.args[0]
        node.target = target
        written.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])
    return True


def _is_idle_dropout(node: Node) -> bool:
    """Whether a call is in-place dropout in eval mode, which changes nothing."""
    idle = (torch.ops.aten.dropout_.default, torch.ops.aten.feature_dropout_.default)
    return node.target in idle and node.args[2] is False


def _functional(node: Node) -> torch._ops.OpOverload | None:
    """The functional form of an in-place call, `relu` for `relu_`; None if there is none."""
    written = node.target
    assert isinstance(written, torch._ops.OpOverload)
    values = [n.meta.get("val") for n in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor)}
    # With mixed dtypes the two forms differ: one keeps the first argument's dtype, the other promotes.
    if not written._opname.endswith("_") or not isinstance(node.meta.get("val"), Tensor):
        return None
    packet = getattr(getattr(torch.ops, written.namespace), written._opname[:-1], None)
    found = getattr(packet, written._overloadname, None)
    if len(dtypes) != 1 or not isinstance(found, torch._ops.OpOverload):
        return None
    types = [[str(a.type) for a in call._schema.arguments] for call in (written, found)]
    return found if types[0] == types[1] and not found._schema.is_mutable else None


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """A context without torch's log of failed exports: long tracebacks, although there is a fallback."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tensor_of(program: torch.export.ExportedProgram, name: str) -> Tensor:
    found = program.state_dict.get(name)
    if found is None:
        found = program.constants[name]
    assert isinstance(found, Tensor)
    return found


def _needed(result: Node) -> set[Node]:
    """The nodes that a result depends on, itself included."""
    needed, waiting = set(), [result]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return needed


def _refuse_unknown(node: Node) -> None:
    """Raise Unshadowable for a node that is no operator call or arithmetic on sizes, reads values, or is random."""
    if node.op == "placeholder":
        return
    target = node.target
    if node.op != "call_function" or not (
        isinstance(target, torch._ops.OpOverload)
        or target is operator.getitem
        or target in _SIZE_FUNCTIONS
    ):
        raise Unshadowable(f"its graph calls {target}")
    if not isinstance(target, torch._ops.OpOverload):
        return
    if target.namespace == "aten" and target._opname in ("item", "_local_scalar_dense"):
        raise Unshadowable("its forward reads values of tensors")
    if _is_random(target, node):
        raise Unshadowable(f"its forward draws random numbers ({target})")


def _is_random(target: torch._ops.OpOverload, node: Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    # Dropout and attention are random only with these arguments.
    arguments = {argument.name: argument for argument in target._schema.arguments}
    for position, name in enumerate(arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(name)
        if name in ("train", "training") and value is not True:
            return False
        if name == "dropout_p" and not value:
            return False
    return True
