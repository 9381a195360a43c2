"""Targeted attacks descend the loss to the target."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.attacks.targets import random_targets, target_draws


def drawn(y: Tensor, classes: int, seed: int, index: Tensor) -> Tensor:
    """Random targets of a model that masks none of its classes."""
    return random_targets(
        torch.zeros(len(y), classes), y, target_draws(torch.tensor([seed]), index)
    )


def test_a_targeted_attack_reaches_its_target(net: nn.Module, x: Tensor, y: Tensor) -> None:
    target = (y + 1) % 10
    before = net(x).log_softmax(1).gather(1, target.view(-1, 1))
    options = {"eps": 0.3, "alpha": 0.05, "steps": 10, "seed": 0}
    x_adv = PGD(net, **options, targeted=True)(x, target)
    after = net(x_adv).log_softmax(1).gather(1, target.view(-1, 1))
    assert (after > before).all()
    assert (net(x_adv).argmax(1) == target).sum() >= 6


def test_restarts_count_a_target_reached_as_success(net: nn.Module) -> None:
    net = net.double()
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    target = (net(x).argmax(1) + 1) % 10
    options = {"eps": 0.05, "alpha": 0.02, "steps": 3, "seed": 0, "targeted": True}
    reached = [net(PGD(net, **options, restarts=r)(x, target)).argmax(1) == target for r in (1, 5)]
    assert (reached[0] <= reached[1]).all()
    assert reached[0].sum() < reached[1].sum()


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_random_targets_are_uniform_over_the_other_classes(classes: int) -> None:
    n = 5_000
    y = torch.arange(n) % classes
    targets = drawn(y, classes, 7, torch.arange(n))
    shift = (targets - y) % classes
    assert (shift != 0).all()
    counts = shift.bincount(minlength=classes)[1:]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3 or classes == 2


def test_random_targets_follow_seed_and_sample() -> None:
    y, index = torch.zeros(50, dtype=torch.int64), torch.arange(50)
    targets = drawn(y, 10, 7, index)
    assert torch.equal(targets[30:], drawn(y[30:], 10, 7, index[30:]))
    assert not torch.equal(targets, drawn(y, 10, 8, index))


def test_a_random_target_is_fixed_for_the_whole_attack(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    target = drawn(y, 10, 7, torch.arange(8))
    options = {"eps": 0.1, "alpha": 0.02, "steps": 5, "seed": 7}
    expected = PGD(net, **options, targeted=True)(x, target)
    assert torch.equal(PGD(net, **options, targeted="random")(x, y), expected)


def test_candidates_share_their_samples_target(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    pgd = PGD(net, alpha=0.02, steps=3, seed=7, targeted="random", random_start=False)
    both = pgd(x, y, eps=torch.full((16,), 0.1))
    assert torch.equal(both[:8], both[8:])
