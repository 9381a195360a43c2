"""Adversarial weight perturbation (AWP): any method's gradients, taken where a small step raises its loss most."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from iaat_fast.methods import reads
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods import METHODS, Method
from iaat_fast.train.methods.passes import Fooled, Stage

_WITH = "with AWP"
_TINY = 1e-20  # released code: keeps a gradient of zeros from being divided by 0


def perturbs(config: TrainConfig, epoch: int) -> bool:
    """Whether the steps of an epoch (index from 0) perturb the weights."""
    return _has_awp(config) and epoch >= config.baseline.awp_warmup_epochs


def _has_awp(config: TrainConfig) -> bool:
    return config.baseline.awp_gamma > 0 and reads(config.method, "baseline.awp_gamma")


@contextlib.contextmanager
def perturbed(model: nn.Module, gamma: float, *, overflows: bool = False) -> Iterator[None]:
    """A context with each weight tensor w of two or more dimensions at w + gamma * ||w|| / ||g|| * g; g is its `grad`.

    At its end, also after an error, the weights have the bits they had before. Weights without a gradient, biases, and
    the scales of normalisation layers stay as they are. Nothing is read on the host.

    The released code takes a step of plain gradient ascent on a copy of the network, and scales the difference of the
    weights to the norm gamma * ||w||: its learning rate (0.01) cancels out, so that the gradient itself is scaled here.

    Args:
        model: with the gradient of the loss to be raised.
        gamma: size of the perturbation, relative to the norm of each tensor.
        overflows: whether entries of the gradients may be infinite or NaN, in fp16; they perturb nothing.

    Source: Wu, Xia and Wang 2020, "Adversarial weight perturbation helps robust generalization", Equations 8 to 10, and
        the code released with it.
    """
    weights: list[Tensor] = [
        each for each in model.parameters() if each.dim() > 1 and each.grad is not None
    ]
    if not weights:  # which torch's operations on lists refuse
        yield
        return
    kept = [weight.detach().clone() for weight in weights]
    try:
        _perturb_(weights, gamma, overflows=overflows)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, kept)


@torch.no_grad()
def _perturb_(weights: list[Tensor], gamma: float, *, overflows: bool) -> None:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if overflows:
        gradients = [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in gradients]
    scales = torch._foreach_norm(weights)
    norms = torch._foreach_norm(gradients)
    torch._foreach_add_(norms, _TINY)
    torch._foreach_div_(scales, norms)
    torch._foreach_mul_(scales, gamma)
    torch._foreach_add_(weights, torch._foreach_mul(gradients, scales))


@contextlib.contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """A context at whose end the model's buffers, such as BatchNorm's running statistics, are as they were before."""
    buffers = list(model.buffers())
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(buffers, kept, strict=True):
                buffer.copy_(before)


def phase(config: TrainConfig, epoch: int) -> str:
    """The phase of the training that an epoch is in: the method's (`Method.phase`), and whether weights are perturbed.

    The steps of a phase differ in their batches and draws alone.
    """
    found = METHODS[config.method].phase(config, epoch)
    if not _has_awp(config):
        return found
    found = "" if found == Method.phase(config, epoch) else f"{found}, "
    return found + (_WITH if perturbs(config, epoch) else "before AWP")


def passes(config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
    """The passes of the network in a step of a phase (see `phase`): the method's, and those of the perturbation.

    Raises:
        ValueError: as `Method.passes`.
    """
    stages = METHODS[config.method].passes(config, phase.partition(", ")[0], fooled)
    if not phase.endswith(_WITH):
        return stages
    # The gradient that is ascended takes as many passes as the one that is descended.
    losses = sum(stage.passes for stage in stages if stage.kind == "update")
    return *stages, Stage(name="perturbation of the weights", kind="update", passes=losses)
