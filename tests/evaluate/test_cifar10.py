"""Published accuracies of a real checkpoint on real CIFAR-10."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from iaat_fast import data
from iaat_fast.attacks import PGD
from iaat_fast.evaluate import AttackBudget, SharedPGD, accuracy, robust_accuracy


@pytest.fixture(scope="module")
def resnet4b(real_data: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("nets", real_data / "nets.py")
    assert spec is not None
    assert spec.loader is not None
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    return nets.load("resnet4b")


@pytest.mark.slow
def test_resnet4b_lands_on_its_published_accuracies(resnet4b: nn.Module, cifar10_npz: Path) -> None:
    model = resnet4b
    test = data.load("cifar10", cifar10_npz, limit=1000).test

    assert accuracy(model, test) == pytest.approx(0.771, abs=0.01)
    eps = 8 / 255
    # Madry et al.'s step, 2.5 eps / steps, from which the ball's border is just in reach.
    result = robust_accuracy(model, test, eps=eps, alpha=2.5 * eps / 20, steps=20, restarts=1)
    assert result.accuracy == pytest.approx(0.165, abs=0.01)


@pytest.mark.slow
def test_verdicts_on_real_images_do_not_depend_on_the_batch_size(
    resnet4b: nn.Module, cifar10_npz: Path
) -> None:
    test = data.load("cifar10", cifar10_npz, limit=60).test
    attack = {"eps": 4 / 255, "alpha": 1 / 255, "steps": 5, "restarts": 2}
    whole = robust_accuracy(resnet4b, test, **attack, batch_size=60)
    parts = robust_accuracy(resnet4b, test, **attack, batch_size=17)
    assert torch.equal(whole.correct, parts.correct)


@pytest.mark.slow
@pytest.mark.parametrize("any_iterate", [False, True])
def test_shared_trajectories_give_the_verdicts_of_attacks_run_alone_on_real_images(
    resnet4b: nn.Module, cifar10_npz: Path, any_iterate: bool
) -> None:
    test = data.load("cifar10", cifar10_npz, limit=32).test
    budgets = [
        AttackBudget(name="3x3", steps=3, restarts=3),
        AttackBudget(name="20x2", steps=20, restarts=2),
    ]
    attack = {"eps": 8 / 255, "alpha": 2 / 255, "seed": 0}
    # One batch for all, so that no convolution can round differently.
    shared = SharedPGD(resnet4b, test, budgets, **attack, batch_size=32, any_iterate=any_iterate)
    while not shared.finished:
        shared.advance()
    x, y = data.fetch(test, torch.arange(32))
    for number, budget in enumerate(budgets):
        pgd = PGD(resnet4b, steps=budget.steps, early_stop=any_iterate, **attack)
        standing = torch.ones(32, dtype=torch.bool)
        for restart in range(budget.restarts):
            standing &= pgd.logits(pgd(x, y, restart=restart)).argmax(1) == y
        assert torch.equal(shared.standing(number), standing)
        assert 0 < int(standing.sum()) < 32
