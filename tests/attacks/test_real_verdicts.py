"""On real checkpoints and images: what the engine saves changes no verdict, and what it rounds changes few signs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast import ops
from iaat_fast.attacks import PGD, EngineOptions

EPS, ALPHA, SEED = 8 / 255, 2 / 255, 7
Cifar10 = tuple[Tensor, Tensor]
Checkpoint = Callable[[str], nn.Module]


def plain_pgd(net: nn.Module, x: Tensor, y: Tensor, steps: int, restart: int) -> list[Tensor]:
    """Every iterate of the plain loop, all samples in every step, from the library's random start."""
    x_adv = ops.random_start_linf(x, EPS, SEED, restart=restart)
    iterates = [x_adv]
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
        moved = x_adv + ALPHA * grad.sign()
        x_adv = (x + (moved - x).clamp(-EPS, EPS)).clamp(0, 1)
        iterates.append(x_adv)
    return iterates


def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1) != y


@pytest.mark.slow
def test_restarts_on_survivors_give_the_plain_loops_verdicts(
    cifar10: Cifar10, checkpoint: Checkpoint
) -> None:
    net, (x, y) = checkpoint("resnet2b"), (cifar10[0][:32], cifar10[1][:32])
    steps, restarts = 10, 3
    expected = torch.zeros(len(x), dtype=torch.bool)
    for restart in range(restarts):
        expected |= fooled(net, plain_pgd(net, x, y, steps, restart)[-1], y)
    pgd = PGD(net, EPS, ALPHA, steps, restarts=restarts, engine="exact", seed=SEED)
    assert torch.equal(fooled(net, pgd(x, y), y), expected)
    assert 0 < int(expected.sum()) < len(x)
    assert pgd.stats.gradients < 0.7 * pgd.stats.planned


@pytest.mark.slow
def test_early_stop_gives_the_any_iterate_verdicts(
    cifar10: Cifar10, checkpoint: Checkpoint
) -> None:
    net, (x, y) = checkpoint("resnet4b"), (cifar10[0][:32], cifar10[1][:32])
    iterates = plain_pgd(net, x, y, 20, 0)
    expected = torch.stack([fooled(net, x_adv, y) for x_adv in iterates]).any(0)
    pgd = PGD(net, EPS, ALPHA, 20, early_stop=True, engine="exact", seed=SEED)
    assert torch.equal(fooled(net, pgd(x, y), y), expected)
    assert pgd.stats.gradients < 0.6 * pgd.stats.planned


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet2b", "resnet20"])
def test_real_networks_are_shadowed_and_the_verdicts_stay(
    name: str, cifar10: Cifar10, checkpoint: Checkpoint
) -> None:
    net, (x, y) = checkpoint(name), (cifar10[0][:32], cifar10[1][:32])
    verdicts = {}
    for key, options in {
        "plain": {},
        "fast": {"engine": "fast"},
        "bf16": {"precision": "bf16"},
    }.items():
        pgd = PGD(net, 2 / 255, 1 / 255, 5, seed=SEED, **options)
        verdicts[key] = fooled(net, pgd(x, y), y)
        assert ("copy" in pgd.network.gradient_source) == (key != "plain")
    # Folding and bf16 round otherwise, so a sample at the edge may fall on the other side; few do.
    assert int((verdicts["fast"] != verdicts["plain"]).sum()) <= 1
    assert int((verdicts["bf16"] != verdicts["plain"]).sum()) <= 1


@pytest.mark.slow
def test_the_compiled_shadow_attacks_as_the_shadow_does(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    fast = PGD(net, 0.05, 0.01, 5, engine="fast", seed=SEED)(x, y)
    compiled = PGD(net, 0.05, 0.01, 5, engine=EngineOptions(compile=True), seed=SEED)(x, y)
    assert (fast != compiled).float().mean() < 0.02  # fused kernels round otherwise
    assert torch.equal(fooled(net, compiled, y), fooled(net, fast, y))
