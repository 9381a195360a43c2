"""Restarts keep the worst case per sample; early_stop keeps the first iterate that fools the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD

OPTIONS = {"eps": 0.02, "alpha": 0.005, "steps": 3, "seed": 1}


def fooled(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    return net(x_adv).argmax(1) != y


@pytest.fixture
def many() -> Tensor:
    return torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()


def test_restarts_are_the_union_of_single_attacks(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    verdicts = []
    for restarts in (1, 2, 5):
        x_adv = PGD(net, **OPTIONS, restarts=restarts)(many, y)
        assert ((x_adv - many).abs() <= OPTIONS["eps"] + 1e-9).all()
        verdicts.append(fooled(net, x_adv, y))
    assert (verdicts[0] <= verdicts[1]).all()
    assert (verdicts[1] <= verdicts[2]).all()
    assert verdicts[0].sum() < verdicts[2].sum() < len(y)


def test_a_sample_keeps_its_first_adversarial_example(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    once = PGD(net, **OPTIONS)(many, y)
    worst = PGD(net, **OPTIONS, restarts=4)(many, y)
    fell = fooled(net, once, y)
    assert fell.any()
    assert torch.equal(worst[fell], once[fell])
    loss, worst_loss = (F.cross_entropy(net(a), y, reduction="none") for a in (once, worst))
    standing = ~fooled(net, worst, y)
    assert (worst_loss[standing] >= loss[standing]).all()
    assert (worst_loss[standing] > loss[standing]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{"restarts": 2}, {"early_stop": True}])
def test_every_dtype(
    net: nn.Module, x: Tensor, dtype: torch.dtype, options: dict[str, int]
) -> None:
    net, x = net.to(dtype), x.to(dtype)
    y = net(x).argmax(1)
    x_adv = PGD(net, 0.2, 0.05, 5, seed=0, **options)(x, y)
    assert x_adv.dtype is dtype
    assert fooled(net, x_adv, y).all()


@pytest.mark.parametrize("bn", ["train", "train_update"])
def test_restarts_under_batch_statistics(bn_net: nn.Module, x: Tensor, bn: str) -> None:
    y = torch.arange(8)
    pgd = PGD(bn_net, 0.02, 0.01, 2, restarts=3, bn=bn, seed=0)
    x_adv = pgd(x, y)
    assert x_adv.shape == x.shape
    assert ((x_adv - x).abs() <= 0.02 + 1e-6).all()


def test_early_stop_keeps_the_first_iterate_that_fools(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    options = {"eps": 0.1, "alpha": 0.01, "seed": 1}
    iterates = [PGD(net, **options, steps=k)(x, y) for k in range(9)]
    expected = iterates[-1].clone()
    for iterate in reversed(iterates):
        found = fooled(net, iterate, y)
        expected[found] = iterate[found]
    x_adv = PGD(net, **options, steps=8, early_stop=True)(x, y)
    assert torch.equal(x_adv, expected)
    assert not torch.equal(x_adv, iterates[-1])


def test_early_stop_is_never_weaker(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    last = fooled(net, PGD(net, **OPTIONS)(many, y), y)
    first = fooled(net, PGD(net, **OPTIONS, early_stop=True)(many, y), y)
    assert (last <= first).all()


def test_restarts_of_candidates(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    eps = torch.cat([torch.full((8,), 0.01), torch.full((8,), 0.2)])
    x_adv = PGD(net, alpha=0.02, steps=4, restarts=3, seed=0)(x, y, eps=eps)
    assert fooled(net, x_adv[8:], y).all()
    assert ((x_adv[:8] - x).abs() <= 0.01 + 1e-9).all()
    single = PGD(net, alpha=0.02, steps=4, restarts=3, seed=0)(x, y, eps=eps[:8])
    assert torch.equal(x_adv[:8], single)
