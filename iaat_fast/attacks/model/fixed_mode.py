"""Layers whose mode cannot be chosen any more: those of traced, frozen and exported modules."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.export.unflatten import InterpreterModule, UnflattenedModule
from torch.jit import ScriptModule

# Where a TorchScript operation has its running mean (None: there is none to have) and its mode.
_SCRIPTED = {
    "aten::batch_norm": (3, 5),
    "aten::dropout": (None, 2),
    "aten::feature_dropout": (None, 2),
}
# Modules that run code of their own. Of an export, also one that has been given its modules back.
_COMPILED = (ScriptModule, fx.GraphModule, InterpreterModule, UnflattenedModule)


class Layer(NamedTuple):
    """A BatchNorm or dropout whose mode is a constant of the module's code.

    training: the mode.
    batch_norm: it is one, else dropout.
    statistics: it has running ones; without, it takes the batch's in either mode.
    """

    training: bool
    batch_norm: bool
    statistics: bool


def check(modules: list[nn.Module], bn: str) -> None:
    """Raise ValueError where layers have a fixed mode that is not the one of an attack.

    Args:
        modules: all of a model's, containers before what they contain.
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
    """The BatchNorm layers in TorchScript, of whatever class they were made."""
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
    """The modules that have a mode at all: those that are frozen have none."""
    if not _any(modules, ScriptModule):
        return modules
    return [module for module in modules if hasattr(module, "training")]


def _any(modules: list[nn.Module], kinds: type | tuple[type, ...]) -> bool:
    """Whether a module is of these kinds; isinstance takes 0.2 us for TorchScript's, in every call of an attack."""
    return any(issubclass(kind, kinds) for kind in set(map(type, modules)))


_known: weakref.WeakKeyDictionary[ScriptModule, list[tuple[str, bool, bool | None]]] = (
    weakref.WeakKeyDictionary()
)


def _operations(module: ScriptModule) -> list[tuple[str, bool, bool | None]]:
    """Kind, whether it has running statistics, and fixed mode or None, of the operations that have a mode.

    The code of a module does not change; inlining it takes milliseconds.
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
    # Freezing folds BatchNorm into what comes before it, in eval mode.
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
    """The arguments of a call by name."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        names = (argument.name for argument in target._schema.arguments)
        return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    try:
        return inspect.signature(target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # a builtin, without a signature
        return node.kwargs
