"""PGD as people write it: the plain loop, which is the reference, and the loop of the authors' kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attacks.contender import Attack, Contender, Setting, Target


def plain_loop(target: Target, setting: Setting, autocast: torch.dtype | None = None) -> Attack:
    """PGD by `torch.autograd.grad`, which computes no gradients of weights; the loss is summed over the batch."""

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return descend(target.model, start(x, setting), x, y, setting, autocast)

    return attack


def descend(
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
    """PGD by `loss.backward()`, as in the released code of many papers: weights get gradients that nobody reads."""

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
    """Where the attack begins: x, or a random point of the ball."""
    if not setting.random_start:
        return x.clone()
    noise = torch.empty_like(x).uniform_(-setting.eps, setting.eps)
    return (x + noise).clamp(0, 1)


def step(x_adv: Tensor, grad: Tensor, x: Tensor, setting: Setting) -> Tensor:
    """One step along the gradient's sign, back into the ball and the box, in torch's own operations."""
    x_adv = x_adv.detach() + setting.alpha * grad.sign()
    delta = torch.clamp(x_adv - x, min=-setting.eps, max=setting.eps)
    return torch.clamp(x + delta, min=0, max=1)


def _autocast_loop(target: Target, setting: Setting) -> Attack:
    return plain_loop(target, setting, autocast=torch.bfloat16)


PLAIN = Contender(
    name="plain-loop",
    kind="peer",
    make=plain_loop,
    what="vanilla PyTorch, autograd.grad",
    plain=True,
)
LOOPS = (
    PLAIN,
    Contender(
        name="authors-loop",
        kind="peer",
        make=authors_loop,
        what="loss.backward(), with gradients of weights",
        plain=True,
    ),
    Contender(
        name="plain-loop-bf16",
        kind="peer",
        make=_autocast_loop,
        what="the plain loop under bfloat16 autocast",
        precision="bf16",
    ),
)
