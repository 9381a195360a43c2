"""Layers of traced, frozen and exported modules, whose mode (train or eval) can no longer be changed."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export.unflatten import InterpreterModule, UnflattenedModule
from torch.jit import ScriptModule

# TorchScript operations, and which of their arguments are the running mean (None: it has none) and the mode.
_SCRIPTED = {
    "aten::batch_norm": (3, 5),
    "aten::dropout": (None, 2),
    "aten::feature_dropout": (None, 2),
}
# Modules that run a graph of their own, including unflattened exports.
_COMPILED = (ScriptModule, fx.GraphModule, InterpreterModule, UnflattenedModule)


class Layer(NamedTuple):
    """A BatchNorm or dropout whose mode is a constant of the module's code.

    training: the mode.
    batch_norm: whether it is a BatchNorm; else it is dropout.
    statistics: whether it has running statistics; without them BatchNorm uses the batch's in either mode.
    """

    training: bool
    batch_norm: bool
    statistics: bool


def check(modules: list[nn.Module], bn: str) -> None:
    """Raise ValueError if layers have a fixed mode other than that of the attack.

    Args:
        modules: all modules of a model, containers before what they contain.
        bn: the mode wanted, see `mode.attacked`.
    """
    for layer in fixed_layers(modules):
        if layer.training and (layer.statistics or not layer.batch_norm):
            kind = "BatchNorm" if layer.batch_norm else "dropout"
            raise ValueError(
                f"model: its {kind} was fixed in training mode when it was traced or exported, expected eval mode"
            )
        if bn != "eval" and layer.batch_norm and layer.statistics:
            raise ValueError(
                f"bn: {bn!r} for a model whose BatchNorm was fixed in eval mode when it was traced, frozen or "
                "exported, expected 'eval'"
            )


def fixed_layers(modules: list[nn.Module]) -> list[Layer]:
    """The layers of fixed mode among modules, containers before what they contain."""
    if not _any(modules, _COMPILED):
        return []
    found: list[Layer] = []
    inlined: set[int] = set()
    for module in modules:
        if isinstance(module, ScriptModule):
            if id(module) not in inlined:
                inlined.update(map(id, module.modules()))
                found += _scripted(module)
        elif isinstance(module, _COMPILED):
            assert isinstance(module.graph, fx.Graph)
            found += _exported(module.graph)
    return found


def scripted_batch_norms(modules: list[nn.Module]) -> list[nn.Module]:
    """The BatchNorm layers in TorchScript; their original class is not known."""
    if not _any(modules, ScriptModule):
        return []
    return [
        module
        for module in modules
        if isinstance(module, ScriptModule)
        and not module._modules
        and any(kind == "aten::batch_norm" for kind, _, _ in _operations(module))
    ]


def with_mode(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules that have a mode; frozen ones have none."""
    if not _any(modules, ScriptModule):
        return modules
    return [module for module in modules if hasattr(module, "training")]


def _any(modules: list[nn.Module], kinds: type | tuple[type, ...]) -> bool:
    """Whether a module is of these kinds. By type, because isinstance with ScriptModule takes 0.2 us per module."""
    return any(issubclass(kind, kinds) for kind in set(map(type, modules)))


_known: weakref.WeakKeyDictionary[ScriptModule, list[tuple[str, bool, bool | None]]] = (
    weakref.WeakKeyDictionary()
)


def _operations(module: ScriptModule) -> list[tuple[str, bool, bool | None]]:
    """(kind, has running statistics, fixed mode or None) for each operation of a module that has a mode.

    Cached: a module's code does not change, and inlining it takes milliseconds.
    """
    if module not in _known:
        found = []
        graph = getattr(module, "inlined_graph", None)  # a list of modules has no forward
        for kind, (mean, mode) in _SCRIPTED.items():
            for node in graph.findAllNodes(kind, recurse=True) if graph is not None else ():
                statistics = mean is not None and node.inputsAt(mean).type().kind() != "NoneType"
                found.append((kind, statistics, node.inputsAt(mode).toIValue()))
        _known[module] = found
    return _known[module]


def _scripted(module: ScriptModule) -> list[Layer]:
    found = [
        Layer(mode, kind == "aten::batch_norm", statistics)
        for kind, statistics, mode in _operations(module)
        if mode is not None
    ]
    # A frozen module has no mode: freezing folds its BatchNorm, in eval mode, into the layer before it.
    return found if hasattr(module, "training") else [*found, Layer(False, True, True)]


def _exported(graph: fx.Graph) -> Iterable[Layer]:
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", "")
        batch_norm = "batch_norm" in name
        if not (batch_norm or "dropout" in name):
            continue
        given = _arguments(node)
        training = given.get("training", given.get("train"))
        if "no_training" in name or "with_update" in name:
            training = "with_update" in name
        if isinstance(training, bool):
            yield Layer(training, batch_norm, given.get("running_mean") is not None)


def _arguments(node: fx.Node) -> Mapping[str, Any]:
    """The given arguments of a call by name."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        names = (argument.name for argument in target._schema.arguments)
        return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    try:
        return inspect.signature(target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # a builtin, without a signature
        return node.kwargs
