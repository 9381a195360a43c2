"""The compared implementations of PGD: loops as people write them, other libraries, and an expert's loop."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.metadata
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.interleave import wait
from benchmarks.targets import Target

Attack = Callable[[Tensor, Tensor], Tensor]
PACKAGES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
# The compiled step of each network, shared by all attacks on it, and the seconds that compiling took.
_COMPILED: weakref.WeakKeyDictionary[nn.Module, tuple[Callable[..., Tensor], dict[str, float]]] = (
    weakref.WeakKeyDictionary()
)


class Missing(Exception):
    """A provider is not available here; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """PGD's parameters, on the [0, 1] scale, and whether it starts at a random point of the ball or at x itself."""

    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    random_start: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """An implementation of PGD.

    make: `make(target, setting)` returns the attack, a function of images and classes; or raises `Missing`.
    kind: "peer" (another library or a loop), "expert" (the loop that an expert would write) or "engine" (iaat_fast).
    precision: of the gradients: "fp32", "tf32", "bf16", "fp16".
    plain: whether its arithmetic is that of the plain loop, so that rounding cannot explain another result.
    """

    name: str
    kind: str
    make: Callable[[Target, Setting], Attack]
    what: str
    precision: str = "fp32"
    plain: bool = False


def plain_loop(target: Target, setting: Setting, autocast: torch.dtype | None = None) -> Attack:
    """PGD by `torch.autograd.grad`, which computes no gradients of weights; the loss is summed over the batch."""

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return run_loop(target.model, start(x, setting), x, y, setting, autocast)

    return attack


def run_loop(
    model: nn.Module,
    x_adv: Tensor,
    x: Tensor,
    y: Tensor,
    setting: Setting,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """The plain loop from the images x_adv."""
    for _ in range(setting.steps):
        x_adv.requires_grad_()
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            logits = model(x_adv)
        loss = F.cross_entropy(logits.float(), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = step(x_adv, grad, x, setting)
    return x_adv


def authors_loop(target: Target, setting: Setting) -> Attack:
    """PGD by `loss.backward()`, as in the released code of many papers, which also computes gradients of weights."""

    def attack(x: Tensor, y: Tensor) -> Tensor:
        x_adv = start(x, setting)
        for _ in range(setting.steps):
            x_adv.requires_grad_()
            target.model.zero_grad()
            F.cross_entropy(target.model(x_adv), y).backward()
            assert x_adv.grad is not None
            x_adv = step(x_adv, x_adv.grad, x, setting)
        target.model.zero_grad()
        return x_adv

    return attack


def start(x: Tensor, setting: Setting) -> Tensor:
    """Where the attack starts: x, or a random point of the ball."""
    if not setting.random_start:
        return x.clone()
    noise = torch.empty_like(x).uniform_(-setting.eps, setting.eps)
    return (x + noise).clamp(0, 1)


def step(x_adv: Tensor, grad: Tensor, x: Tensor, setting: Setting) -> Tensor:
    """One step along the gradient's sign, projected into the ball and the box, by torch's operations."""
    x_adv = x_adv.detach() + setting.alpha * grad.sign()
    delta = torch.clamp(x_adv - x, min=-setting.eps, max=setting.eps)
    return torch.clamp(x + delta, min=0, max=1)


def _autocast_loop(target: Target, setting: Setting) -> Attack:
    return plain_loop(target, setting, autocast=torch.bfloat16)


PLAIN = Provider(
    name="plain-loop",
    kind="peer",
    make=plain_loop,
    what="vanilla PyTorch, autograd.grad",
    plain=True,
)
LOOPS = (
    PLAIN,
    Provider(
        name="authors-loop",
        kind="peer",
        make=authors_loop,
        what="loss.backward(), with gradients of weights",
        plain=True,
    ),
    Provider(
        name="plain-loop-bf16",
        kind="peer",
        make=_autocast_loop,
        what="the plain loop under bfloat16 autocast",
        precision="bf16",
    ),
)


def versions() -> dict[str, str | None]:
    """The installed version of each library, None where it is missing."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def by_torchattacks(target: Target, setting: Setting) -> Attack:
    attack = _imported("torchattacks").PGD(
        target.model,
        eps=setting.eps,
        alpha=setting.alpha,
        steps=setting.steps,
        random_start=setting.random_start,
    )
    return attack


def by_foolbox(target: Target, setting: Setting) -> Attack:
    """By foolbox's `run`, without the forward by which its `__call__` computes verdicts."""
    foolbox = _imported("foolbox")
    model = foolbox.PyTorchModel(target.model, bounds=(0, 1), device=target.x.device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=setting.alpha, steps=setting.steps, random_start=setting.random_start
    )
    misclassified = foolbox.criteria.Misclassification
    return lambda x, y: attack.run(model, x, misclassified(y), epsilon=setting.eps)


def by_art(target: Target, setting: Setting) -> Attack:
    """By ART, with numpy as input and output, and the two forwards for verdicts that it always makes at the end."""
    classification = _imported("art.estimators.classification")
    evasion = _imported("art.attacks.evasion")
    classifier = classification.PyTorchClassifier(
        target.model,
        torch.nn.CrossEntropyLoss(),
        input_shape=tuple(target.x.shape[1:]),
        nb_classes=target.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if target.x.is_cuda else "cpu",
    )
    attack = evasion.ProjectedGradientDescent(
        classifier,
        norm="inf",
        eps=setting.eps,
        eps_step=setting.alpha,
        max_iter=setting.steps,
        num_random_init=int(setting.random_start),
        batch_size=len(target.x),
        verbose=False,
    )

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

    return run


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    # A library built for other versions may raise anything while it is imported.
    except Exception as error:
        raise Missing(f"{module}: {type(error).__name__}: {error}") from error


PEERS = (
    Provider(
        name="torchattacks", kind="peer", make=by_torchattacks, what="torchattacks.PGD", plain=True
    ),
    Provider(
        name="foolbox", kind="peer", make=by_foolbox, what="foolbox.attacks.LinfPGD", plain=True
    ),
    Provider(
        name="art",
        kind="peer",
        make=by_art,
        what="adversarial-robustness-toolbox, ProjectedGradientDescent",
        plain=True,
    ),
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
