"""MI-FGSM is that of torchattacks, with everything PGD has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import MIFGSM, PGD

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def by_torchattacks(net: nn.Module, x: Tensor, y: Tensor, decay: float, targeted: bool) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.MIFGSM(net, EPS, ALPHA, STEPS, decay)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, y)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_bit_for_bit_on_a_small_network(
    decay: float, targeted: bool, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    goal = (y + 3) % 10 if targeted else y
    x_adv = MIFGSM(net, EPS, ALPHA, STEPS, decay=decay, targeted=targeted)(x, goal)
    assert torch.equal(x_adv, by_torchattacks(net, x, goal, decay, targeted))
    without = PGD(net, EPS, ALPHA, STEPS, random_start=False, targeted=targeted)(x, goal)
    assert not torch.equal(x_adv, without)


def test_bit_for_bit_on_a_real_network(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """At 64 images: torchattacks averages the loss, and only a power of two does that without a rounding."""
    net, x, y = checkpoint("resnet4b"), cifar10[0][:64], cifar10[1][:64]
    x_adv = MIFGSM(net, EPS, ALPHA, STEPS)(x, y)
    assert torch.equal(x_adv, by_torchattacks(net, x, y, 1.0, targeted=False))


def test_without_momentum_it_is_pgd(net: nn.Module, x: Tensor, y: Tensor) -> None:
    options = {"eps": EPS, "alpha": ALPHA, "steps": STEPS, "random_start": True, "seed": 0}
    assert torch.equal(MIFGSM(net, decay=0, **options)(x, y), PGD(net, **options)(x, y))


def test_the_momentum_follows_its_sample_out_of_the_batch(net: nn.Module) -> None:
    net, x = net.double(), torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    x = x.double()
    y = net(x).argmax(1)
    options: dict[str, Any] = {"eps": 0.015, "alpha": 0.007}
    iterates = [MIFGSM(net, **options, steps=k)(x, y) for k in range(13)]
    expected = iterates[-1].clone()
    for iterate in reversed(iterates):
        fooled = net(iterate).argmax(1) != y
        expected[fooled] = iterate[fooled]
    attack = MIFGSM(net, **options, steps=12, early_stop=True)
    assert torch.equal(attack(x, y), expected)
    assert 0 < (net(expected).argmax(1) != y).sum() < 64
    assert attack.stats.gradients < attack.stats.planned, "some have left"


@pytest.mark.filterwarnings("error")
def test_float16_keeps_the_signs_of_small_entries(x: Tensor) -> None:
    """1e-6 is 1e-9 of the gradient's mean, less than float16 holds."""
    weight = torch.full((192,), 1000.0)
    weight[::2] = 1e-6
    weight = weight.half()

    def model(images: Tensor) -> Tensor:
        score = (images.flatten(1) - 0.5) @ weight
        return torch.stack([score, -score], dim=1)

    x = x.half().clamp(0.1, 0.9)
    attack = MIFGSM(model, 0.05, 0.02, 3, loss="cw")
    x_adv = attack(x, torch.zeros(8, dtype=torch.int64))
    assert attack.stats.zero == 0
    assert (x_adv < x).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_nan_gradient_is_counted(
    dtype: torch.dtype, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    net, x = net.to(dtype), x.to(dtype)

    def rooted(images: Tensor) -> Tensor:
        return net(images) + 0 * (images - images.detach()).sqrt().flatten(1).sum(1, keepdim=True)

    attack = MIFGSM(rooted, EPS, ALPHA, 2)
    with pytest.warns(RuntimeWarning, match="are NaN"):
        attack(x, y)
    assert attack.stats.nan == 2 * x.numel()


@pytest.mark.filterwarnings("ignore:.* gradient entries are 0:RuntimeWarning")
def test_a_gradient_of_zero_leaves_no_trace(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """A gradient over its norm would be 0/0 = NaN for the whole attack."""

    def half_blind(images: Tensor) -> Tensor:
        return torch.cat([net(images[:4]), net(images[4:].round())])

    attack = MIFGSM(half_blind, EPS, ALPHA, 3)
    x_adv = attack(x, y)
    assert attack.stats.nan == 0
    assert torch.equal(x_adv[4:], x[4:])
    assert torch.equal(x_adv[:4], MIFGSM(net, EPS, ALPHA, 3)(x, y)[:4])


def test_bad_decay(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^decay: -1, expected a number >= 0"):
        MIFGSM(net, decay=-1)
    with pytest.raises(TypeError, match=r"^decay: '1', expected a number >= 0"):
        MIFGSM(net, decay="1")  # type: ignore[arg-type]
