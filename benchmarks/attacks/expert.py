"""The loop that an expert would write without this library: bf16 autocast, channels last, compiled, in a CUDA graph."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attacks.providers import Attack, Provider, Setting, start, step
from benchmarks.attacks.rates import wait
from benchmarks.targets import Target

# Compiled once per network, however often an attack is made of it; and how long that took.
_COMPILED: weakref.WeakKeyDictionary[nn.Module, tuple[Callable[..., Tensor], dict[str, float]]] = (
    weakref.WeakKeyDictionary()
)


class ExpertLoop:
    """PGD by the compiled gradient step; on CUDA all steps of an attack are one graph per shape of the images.

    Attributes:
        compile_s: seconds from the first call of the compiled step to its result, None before it; not in the timings.
    """

    def __init__(self, target: Target, setting: Setting) -> None:
        self.setting = setting
        if target.model not in _COMPILED:
            _COMPILED[target.model] = _compiled(target.model), {}
        self._gradient, self._took = _COMPILED[target.model]
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    @property
    def compile_s(self) -> float | None:
        return sum(self._took.values()) or None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        key = str(tuple(x.shape))
        if key not in self._took:
            began = time.perf_counter()
            self._gradient(x.clone(), y)
            wait(x.device)
            self._took[key] = time.perf_counter() - began
        x_adv = start(x, self.setting)
        return self._replayed(x_adv, x, y) if x.is_cuda else self._steps(x_adv, x, y)

    def _steps(self, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(self.setting.steps):
            x_adv = step(x_adv, self._gradient(x_adv, y), x, self.setting)
        return x_adv

    def _replayed(self, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if x.shape not in self._graphs:
            inputs = x_adv.clone(), x.clone(), y.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._steps(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._steps(*inputs)
            self._graphs[x.shape] = graph, *inputs, result  # type: ignore[assignment]
        graph, *static, result = self._graphs[x.shape]
        for place, value in zip(static, (x_adv, x, y), strict=True):
            place.copy_(value)
        graph.replay()
        return result.clone()


def _compiled(model: nn.Module) -> Callable[..., Tensor]:
    """Gradient [N, C, H, W] of the summed cross-entropy, the network a frozen copy in bf16 and channels last."""
    net = copy.deepcopy(model).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    forward = torch.compile(net)

    def gradient(x_adv: Tensor, y: Tensor) -> Tensor:
        leaf = x_adv.detach().to(memory_format=torch.channels_last).requires_grad_()
        # The cache of casts would go stale inside a graph.
        with torch.autocast(leaf.device.type, torch.bfloat16, cache_enabled=False):
            logits = forward(leaf)
        (grad,) = torch.autograd.grad(F.cross_entropy(logits.float(), y, reduction="sum"), leaf)
        return grad.to(memory_format=torch.contiguous_format)

    return gradient


def _make(target: Target, setting: Setting) -> Attack:
    return ExpertLoop(target, setting)


EXPERT = Provider(
    name="expert-loop",
    kind="expert",
    make=_make,
    what="bf16 autocast, channels last, torch.compile; in a CUDA graph on CUDA",
    precision="bf16",
)
