"""The shadow: a frozen copy of the live model, folded and in the attack's precision, for gradients of the images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
import torch.fx
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm
# Subclasses, parametrised ones among them, may do more than their type says.
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Unshadowable(Exception):
    """A model of which no copy of this kind can be made; the message says why."""


class Shadow:
    """A copy of a model whose weights stand still, refreshed from the live ones.

    Args:
        model: the live model, in the mode in which it is attacked.
        dtype: of the copy's weights, None for their own. BatchNorm that is not folded keeps its own: statistics
            need the range.
        fold: trace the model and fold BatchNorm in eval mode into the layer before it.
        channels_last: store convolutions channels last.

    Attributes:
        module: maps images of `dtype` to logits.
        folded: number of BatchNorm layers that are gone.

    Raises:
        Unshadowable: `fold` and the model cannot be traced; or the model has hooks, which belong to the live one.
    """

    def __init__(
        self, model: nn.Module, *, dtype: torch.dtype | None, fold: bool, channels_last: bool
    ) -> None:
        _refuse_hooks(model)
        source = _trace(model) if fold else model
        twins = {
            id(tensor): _empty_twin(tensor, kept or tensor.dtype, channels_last)
            for tensor, kept in _tensors(source, dtype)
        }
        # Prefilled, the memo keeps the copy from copying a weight: it takes the twin, for tied weights the same one.
        self.module: nn.Module = copy.deepcopy(source, dict(twins))
        self._live = [tensor for tensor, _ in _tensors(source, dtype)]
        self._twins = [twins[id(tensor)] for tensor in self._live]
        self._folds: list[tuple[nn.Module, BatchNorm, nn.Conv2d]] = []
        if isinstance(source, torch.fx.GraphModule) and isinstance(
            self.module, torch.fx.GraphModule
        ):
            self._fold(source, self.module)
        self.folded = len(self._folds)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live weights, in one pass."""
        if self._live:
            torch._foreach_copy_(self._twins, self._live)
        for layer, norm, twin in self._folds:
            weight, bias = folded_parameters(layer, norm)
            twin.weight.copy_(weight)
            cast(Tensor, twin.bias).copy_(bias)

    def _fold(self, source: torch.fx.GraphModule, shadow: torch.fx.GraphModule) -> None:
        """Fold what can be folded: the shadow's layers get a bias, its BatchNorm layers disappear."""
        modules = dict(source.named_modules())
        gone: set[int] = set()
        for layer_node, norm_node in list(_foldable(shadow, modules)):
            layer, norm = modules[str(layer_node.target)], modules[str(norm_node.target)]
            twin = cast(nn.Conv2d, shadow.get_submodule(str(layer_node.target)))
            if twin.bias is None:
                twin.register_parameter(
                    "bias", nn.Parameter(twin.weight.new_empty(len(twin.weight)), False)
                )
            assert isinstance(norm, BatchNorm)
            self._folds.append((layer, norm, twin))
            gone.update(id(t) for m in (layer, norm) for t in (*m.parameters(), *m.buffers()))
            norm_node.replace_all_uses_with(layer_node)
            shadow.graph.erase_node(norm_node)
        shadow.delete_all_unused_submodules()
        shadow.recompile()
        kept = [
            pair for pair in zip(self._live, self._twins, strict=True) if id(pair[0]) not in gone
        ]
        self._live, self._twins = [pair[0] for pair in kept], [pair[1] for pair in kept]


def folded_parameters(layer: nn.Module, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that does what `layer` and then `norm` in eval mode do."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if isinstance(bias, Tensor):
        shift = shift + bias * scale
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift


def _refuse_hooks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks):
            raise Unshadowable(f"{name or 'the model'} has hooks")


def _trace(model: nn.Module) -> torch.fx.GraphModule:
    try:
        return torch.fx.symbolic_trace(model)
    # Tracing runs the user's forward on proxies: whatever that raises, there is no graph.
    except Exception as error:
        raise Unshadowable(f"it cannot be traced ({type(error).__name__}: {error})") from error


def _tensors(
    model: nn.Module, dtype: torch.dtype | None
) -> Iterator[tuple[Tensor, torch.dtype | None]]:
    """Every parameter and buffer once, and the dtype of its twin."""
    seen: set[int] = set()
    for module in model.modules():
        keeps = isinstance(module, BatchNorm)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield tensor, None if keeps or not tensor.is_floating_point() else dtype


def _empty_twin(tensor: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.preserve_format
    if channels_last and tensor.dim() == 4:
        layout = torch.channels_last
    twin = torch.empty_like(tensor, dtype=dtype, memory_format=layout, requires_grad=False)
    return nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin


def _foldable(
    graph_module: torch.fx.GraphModule, modules: dict[str, nn.Module]
) -> Iterator[tuple[torch.fx.Node, torch.fx.Node]]:
    """Pairs of nodes: a layer, and the BatchNorm in eval mode that alone reads it."""
    calls: dict[int, int] = {}
    owners: dict[int, int] = {}
    nodes = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    for node in nodes:
        module = modules[str(node.target)]
        calls[id(module)] = calls.get(id(module), 0) + 1
    for module in {id(m): m for m in modules.values()}.values():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    read_elsewhere = {
        id(_attribute(modules, str(node.target)))
        for node in graph_module.graph.nodes
        if node.op == "get_attr"
    }
    for node in nodes:
        norm = modules[str(node.target)]
        if not isinstance(norm, BatchNorm) or norm.training or norm.running_mean is None:
            continue
        if len(node.args) != 1 or not isinstance(node.args[0], torch.fx.Node):
            continue
        layer_node = node.args[0]
        if layer_node.op != "call_module" or len(layer_node.users) != 1:
            continue
        layer = modules[str(layer_node.target)]
        once = calls[id(norm)] == 1 and calls[id(layer)] == 1
        tied = any(
            owners[id(parameter)] > 1 or id(parameter) in read_elsewhere
            for parameter in (*layer.parameters(), *norm.parameters())
        )
        if type(layer) in _FOLDABLE and once and not tied:
            yield layer_node, node


def _attribute(modules: dict[str, nn.Module], target: str) -> object:
    owner, _, name = target.rpartition(".")
    return getattr(modules[owner], name)
