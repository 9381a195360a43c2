"""An ensemble is attacked by the mean of its models' logits, probabilities or losses, as plain torch writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import APGD, MIFGSM, PGD, Ensemble, Square
from iaat_fast.attacks.model.ensemble import MEANS

OPTIONS: dict[str, Any] = {"eps": 0.03, "alpha": 0.008, "steps": 3, "random_start": False}


@pytest.fixture
def other() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 10)).eval()


LOSSES: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    "logits": lambda each, y: F.cross_entropy(torch.stack(each).mean(0), y, reduction="sum"),
    "probabilities": lambda each, y: F.nll_loss(
        torch.stack([z.softmax(1) for z in each]).mean(0).log(), y, reduction="sum"
    ),
    "losses": lambda each, y: sum(F.cross_entropy(z, y, reduction="sum") for z in each) / 2,
}


@pytest.mark.parametrize("engine", ["auto", "exact", "fast"])
@pytest.mark.parametrize("mean", MEANS)
def test_a_step_follows_the_gradient_of_the_mean(
    mean: str, engine: str, net: nn.Module, other: nn.Module, x: Tensor
) -> None:
    net, other, x = net.double(), other.double(), x.double()
    y = torch.arange(8)
    expected = x.clone()
    for _ in range(3):
        leaf = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(LOSSES[mean]([net(leaf), other(leaf)], y), leaf)
        moved = (expected + 0.008 * grad.sign()).clamp(x - 0.03, x + 0.03)
        expected = moved.clamp(0, 1)
    made = PGD(Ensemble([net, other], mean), engine=engine, **OPTIONS)(x, y)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    alone = PGD(net, engine=engine, **OPTIONS)(x, y)
    assert not torch.allclose(made, alone)


@pytest.mark.parametrize("engine", ["auto", "fast"])
@pytest.mark.parametrize("mean", MEANS)
def test_models_count_by_their_weights(
    mean: str, engine: str, net: nn.Module, other: nn.Module, x: Tensor
) -> None:
    """Whose sum does not matter; one of weight 0 is not run."""

    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("run")

    net, other, x = net.double(), other.double(), x.double()
    y = torch.arange(8)

    def loss(images: Tensor) -> Tensor:
        each = [net(images), other(images)]
        if mean == "logits":
            return F.cross_entropy(0.2 * each[0] + 0.8 * each[1], y, reduction="sum")
        if mean == "probabilities":
            p = 0.2 * each[0].softmax(1) + 0.8 * each[1].softmax(1)
            return F.nll_loss(p.log(), y, reduction="sum")
        losses = [F.cross_entropy(z, y, reduction="sum") for z in each]
        return 0.2 * losses[0] + 0.8 * losses[1]

    ensemble = Ensemble([net, Never(), other], mean, weights=[1.5, 0, 6])
    assert ensemble.weights == pytest.approx((0.2, 0, 0.8))
    expected = x.clone()
    for _ in range(3):
        leaf = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
        moved = (expected + 0.008 * grad.sign()).clamp(x - 0.03, x + 0.03)
        expected = moved.clamp(0, 1)
    made = PGD(ensemble, engine=engine, **OPTIONS)(x, y)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    even = PGD(Ensemble([net, other], mean), engine=engine, **OPTIONS)(x, y)
    assert not torch.allclose(made, even)


@pytest.mark.parametrize("mean", MEANS)
def test_equal_weights_are_none(mean: str, net: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Of any sum, of which the largest floats have none, and as a tensor or an array."""
    net, other, x = net.double(), other.double(), x.double()
    expected = Ensemble([net, other], mean)(x)
    for weights in ([1, 1], [1e308] * 2, [5e-324] * 2, torch.ones(2), np.full(2, 0.5)):
        logits = Ensemble([net, other], mean, weights)(x)
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_bad_weights_are_refused(net: nn.Module, other: nn.Module) -> None:
    refused: list[tuple[Any, str]] = [
        ([1], r"^weights: 1, expected 2, one for each model$"),
        ([], r"^weights: 0, expected 2, one for each model$"),
        ([1, -1], r"^weights\[1\]: -1, expected a number >= 0$"),
        ([0.0, 0], r"^weights: \[0\.0, 0\], expected one above 0$"),
        ([1, float("nan")], r"^weights\[1\]: nan, expected a number >= 0"),
        ([float("inf"), 1], r"^weights\[0\]: inf, expected a number >= 0, finite$"),
        ([1, "2"], r"^weights\[1\]: '2', expected a number >= 0$"),
        (torch.ones(1, 2), r"^weights: 1, expected 2, one for each model$"),
        (0.5, r"^weights: 0\.5, expected numbers, one for each model$"),
        (torch.tensor(0.5), r"^weights: tensor\(0\.5.*\), expected numbers, one for each model$"),
    ]
    for weights, message in refused:
        with pytest.raises((TypeError, ValueError), match=message):
            Ensemble([net, other], weights=weights)


def test_the_three_means_are_three_attacks(
    net: nn.Module, other: nn.Module, x: Tensor, y: Tensor
) -> None:
    made = [MIFGSM(Ensemble([net, other], mean), **OPTIONS)(x, y) for mean in MEANS]
    assert not any(torch.equal(made[i], made[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("mean", MEANS)
def test_an_ensemble_of_one_is_the_model(mean: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    made = PGD(Ensemble([net], mean), **OPTIONS)(x, y)
    torch.testing.assert_close(made, PGD(net, **OPTIONS)(x, y), rtol=0, atol=1e-12)
    assert torch.equal(Ensemble([net], mean)(x).argmax(1), net(x).argmax(1))


@pytest.mark.parametrize("mean", MEANS)
def test_every_kind_of_attack_and_mode(
    mean: str, net: nn.Module, bn_net: nn.Sequential, x: Tensor, y: Tensor
) -> None:
    """Verdicts are the ensemble's; all models are in evaluation mode meanwhile, and afterwards as they were."""
    bn_net.train()
    net.eval()
    before = {name: value.clone() for name, value in bn_net.state_dict().items()}
    ensemble = Ensemble([net, bn_net], mean)
    for attack in (
        PGD(ensemble, 0.1, 0.03, 4, restarts=2, early_stop=True, seed=0),
        APGD(ensemble, 0.1, 4, seed=0),
        Square(ensemble, 0.1, 5, seed=0),
        PGD(ensemble, 0.1, 0.03, 2, precision="bf16", seed=0),
    ):
        x_adv = attack(x, y)
        assert ((x_adv - x).abs() <= 0.1 + 1e-6).all()
        assert attack.stats.nan == 0
        assert torch.equal(attack.logits(x_adv), attack.logits(x_adv))
        assert all(module.training for module in bn_net.modules())
        assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in bn_net.state_dict().items())


def test_early_stopping_asks_the_ensemble(net: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Of losses too, whose members' logits the attack sees one after the other."""
    net, other, x = net.double(), other.double(), x.double()
    ensemble = Ensemble([net, other], "losses")
    right = ensemble(x).argmax(1)
    options: dict[str, Any] = {**OPTIONS, "eps": 0.1, "alpha": 0.006}
    iterates = [x, *(PGD(ensemble, **options | {"steps": k})(x, right) for k in range(1, 7))]
    expected = iterates[-1].clone()
    for iterate in reversed(iterates):
        fooled = ensemble(iterate).argmax(1) != right
        expected[fooled] = iterate[fooled]
    made = PGD(ensemble, early_stop=True, **options | {"steps": 6})(x, right)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected, iterates[-1]), "some have stopped early"


def test_masked_and_impossible_classes_have_numbers_for_gradients(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """Classes that all models mask, and probabilities that underflow."""
    net, x = net.double(), x.double()

    class Far(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = net(images) - 200 * (torch.arange(10) == 4)
            return logits.masked_fill(torch.arange(10) > 7, -torch.inf)

    for mean in MEANS:
        attack = PGD(Ensemble([Far(), Far()], mean), **OPTIONS)
        made, alone = attack(x, y % 4), PGD(Far(), **OPTIONS)(x, y % 4)
        torch.testing.assert_close(made, alone, rtol=0, atol=1e-12)
        assert attack.stats.nan == 0
        attack = PGD(Ensemble([Far(), Far(), net], mean, weights=[1, 3, 0]), **OPTIONS)
        torch.testing.assert_close(attack(x, y % 4), alone, rtol=0, atol=1e-12)
        assert attack.stats.nan == 0


@pytest.mark.parametrize("mean", MEANS)
def test_members_write_into_images_of_their_own(
    mean: str, net: nn.Module, other: nn.Module, x: Tensor, y: Tensor
) -> None:
    class Writes(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = net(images.sub_(0.1))
            return logits

    class Reads(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = net(images - 0.1)
            return logits

    made = PGD(Ensemble([Writes(), other], mean), **OPTIONS)(x, y)
    assert torch.equal(made, PGD(Ensemble([Reads(), other], mean), **OPTIONS)(x, y))


@pytest.mark.parametrize("mean", MEANS)
def test_other_classes_are_refused(mean: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    few = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    with pytest.raises(ValueError, match=r"^models: \[10, 7\] classes, expected the same of each$"):
        PGD(Ensemble([net, few], mean), **OPTIONS)(x, y)


def test_bad_ensembles_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^models: none, expected at least 1"):
        Ensemble([])
    with pytest.raises(TypeError, match=r"^models\[1\]: function, expected an nn\.Module"):
        Ensemble([net, lambda x: x])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"^mean: 'loss', .*did you mean 'losses'\?"):
        Ensemble([net], "loss")
    around = nn.Sequential(nn.Identity(), Ensemble([net], "losses"))
    for model in (around, lambda x: around(x)):
        with pytest.raises(ValueError, match=r"around an Ensemble of losses, expected the Ensemb"):
            PGD(model)
    PGD(nn.Sequential(nn.Identity(), Ensemble([net])))
