"""Zero and NaN gradients are counted, and a warning names the likely cause."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, AttackStats

OPTIONS = {"eps": 0.1, "alpha": 0.03, "seed": 0}


def test_an_ordinary_attack_counts_and_does_not_warn(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, **OPTIONS, steps=3)
    assert pgd.stats == AttackStats(total=0, zero=0, nan=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(x, y)
    assert pgd.stats.total == 3 * x.numel()
    assert pgd.stats.zero < 0.01 * pgd.stats.total
    assert pgd.stats.nan == 0


def test_the_counts_are_those_of_one_call(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, **OPTIONS, steps=3)
    for _ in range(2):
        pgd(x[:4], y[:4])
        assert pgd.stats.total == 3 * x[:4].numel()


def test_a_masked_gradient(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def quantised(images: Tensor) -> Tensor:
        return net((16 * images).round() / 16)

    pgd = PGD(quantised, **OPTIONS, steps=2)
    with pytest.warns(
        RuntimeWarning, match="are 0 and moved no pixel.*masked gradients.*quantised"
    ):
        pgd(x, y)
    assert pgd.stats.zero == pgd.stats.total == 2 * x.numel()


def test_a_nan_gradient(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """The gradient of sqrt at 0, times 0, is NaN; torch.sign makes 0 of it and the attack stands still."""

    def rooted(images: Tensor) -> Tensor:
        return net(images) + 0 * (images - images.detach()).sqrt().flatten(1).sum(1, keepdim=True)

    pgd = PGD(rooted, **OPTIONS, steps=2, random_start=False)
    with pytest.warns(RuntimeWarning, match="are NaN and moved no pixel.*without a gradient"):
        x_adv = pgd(x, y)
    assert pgd.stats.nan == pgd.stats.total == 2 * x.numel()
    assert torch.equal(x_adv, x)


def test_the_warning_points_at_the_caller(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        PGD(lambda a: net(a.round()), **OPTIONS, steps=1)(x, y)
    assert caught[0].filename == __file__


def test_an_exact_attack_counts_the_nan_of_nan_logits(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(lambda a: net(a) * math.nan, **OPTIONS, steps=1, engine="exact")
    with pytest.warns(RuntimeWarning, match="NaN"):
        pgd(x, y)
    assert pgd.stats.nan == pgd.stats.total
