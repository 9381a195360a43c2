"""In float32 PGD is bit for bit the attack of torchattacks and of foolbox from the same start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import FGSM, PGD

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


class FirstInput(nn.Module):
    """Keeps the first images a network is called with: where an attack starts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.first = net, None

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = x.detach().clone()
        return self.net(x)


def by_torchattacks(net: nn.Module, x: Tensor, y: Tensor, random_start: bool) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.PGD(net, EPS, ALPHA, STEPS, random_start=random_start)
    return attack(x, y)


def by_foolbox(net: nn.Module, x: Tensor, y: Tensor, random_start: bool) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=random_start)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=EPS)


peers = pytest.mark.parametrize("peer", [by_torchattacks, by_foolbox])
starts = pytest.mark.parametrize("random_start", [False, True])


def assert_equal_to_peer(
    peer: Any, net: nn.Module, x: Tensor, y: Tensor, random_start: bool, **options: Any
) -> None:
    watched = FirstInput(net).eval()
    expected = peer(watched, x, y, random_start)
    assert torch.equal(watched.first, x) != random_start
    start = watched.first if random_start else None
    pgd = PGD(net, EPS, ALPHA, STEPS, random_start=False, **options)
    x_adv = pgd(x, y, start=start)
    assert torch.equal(x_adv, expected)
    assert (x_adv - x).abs().max() > EPS / 2


@peers
@starts
@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_on_a_small_relu_network(
    peer: Any, random_start: bool, engine: str, net: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    torch.manual_seed(0)
    assert_equal_to_peer(peer, net, x, y, random_start, engine=engine)


@peers
@starts
@pytest.mark.parametrize("n", [64, 100])
def test_on_a_real_network_and_real_images(
    peer: Any,
    random_start: bool,
    n: int,
    cifar10: tuple[Tensor, Tensor],
    checkpoint: Callable[[str], nn.Module],
) -> None:
    """torchattacks averages the loss over the batch: a power of two scales every gradient without a rounding, and at
    100 images the roundings flip no sign here."""
    torch.manual_seed(0)
    images, labels = cifar10
    assert_equal_to_peer(peer, checkpoint("resnet4b"), images[:n], labels[:n], random_start)


def test_fgsm_is_that_of_torchattacks(net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    assert torch.equal(FGSM(net, EPS)(x, y), torchattacks.FGSM(net, EPS)(x, y))


def test_fgsm_on_a_real_network(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, (images, labels) = checkpoint("resnet4b"), cifar10
    expected = torchattacks.FGSM(net, EPS)(images[:64], labels[:64])
    assert torch.equal(FGSM(net, EPS)(images[:64], labels[:64]), expected)


def test_targeted_pgd_is_that_of_foolbox(net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    foolbox = pytest.importorskip("foolbox")
    target = (y + 3) % 10
    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    expected = attack.run(model, x, foolbox.criteria.TargetedMisclassification(target), epsilon=EPS)
    pgd = PGD(net, EPS, ALPHA, STEPS, random_start=False, targeted=True)
    assert torch.equal(pgd(x, target), expected)


@pytest.mark.slow
def test_resnet4b_lands_on_its_published_accuracy_at_2(
    real_data: Any, checkpoint: Callable[[str], nn.Module], first_thousand: tuple[Tensor, Tensor]
) -> None:
    """PGD-20 on the first 1,000 test images, in per cent, within a point. At 8: tests/evaluate/test_cifar10.py."""
    images, labels = first_thousand
    net = checkpoint("resnet4b")
    pgd = PGD(net, 2 / 255, 0.5 / 255, 20, seed=0)
    parts = zip(images.split(250), labels.split(250), strict=True)
    right = sum(int((pgd.logits(pgd(a, b)).argmax(1) == b).sum()) for a, b in parts)
    assert right / 10 == pytest.approx(61.8, abs=1.0)
