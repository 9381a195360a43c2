"""DeepFool is foolbox's in the L-infinity norm, clipped to a radius per sample where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import DeepFool


def by_foolbox(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    attack = foolbox.attacks.LinfDeepFoolAttack(**options)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return attack.run(model, x, foolbox.criteria.Misclassification(y))


def size(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).abs().amax(1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"steps": 1}, {"candidates": 3}, {"overshoot": 0.3}])
def test_the_images_of_foolbox(
    options: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """In float64, up to its roundings: the perturbation is summed in another order."""
    net, x = net.double(), x.double()
    expected = by_foolbox(net, x, y, **options)
    torch.testing.assert_close(DeepFool(net, **options)(x, y), expected, rtol=0, atol=1e-12)
    assert (size(expected, x) > 1e-4).all()


def test_the_images_of_foolbox_on_a_real_network(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """In float32; 1e-6 is some roundings of a pixel, over the few steps it takes."""
    net, x, y = checkpoint("resnet4b"), cifar10[0][:64], cifar10[1][:64]
    attack = DeepFool(net, steps=10, candidates=4)
    x_adv, expected = attack(x, y), by_foolbox(net, x, y, steps=10, candidates=4)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    assert torch.equal(net(x_adv).argmax(1), net(expected).argmax(1))
    assert (net(x_adv).argmax(1) != y).all()
    assert attack.stats.gradients < attack.stats.planned / 2, "samples leave when they are fooled"


def test_a_misclassified_sample_stays_as_it_is(net: nn.Module, x: Tensor, y: Tensor) -> None:
    labels = y.clone()
    labels[3] = (y[3] + 1) % 10
    x_adv = DeepFool(net)(x, labels)
    assert torch.equal(x_adv[3], x[3])
    assert (net(x_adv).argmax(1) != labels).all()


def test_perturbations_are_small(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """On a linear network one step lands on the nearest boundary, |z_k - z_y| / ||w_k - w_y||_1 away."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    x = 0.5 + 0.1 * (x.double() - 0.5)
    z, w = linear(x), linear[1].weight
    y = z.argmax(1)
    distances = (z.gather(1, y.view(-1, 1)) - z) / (w - w[y].unsqueeze(1)).abs().sum(2)
    nearest = distances.scatter(1, y.view(-1, 1), math.inf).amin(1)
    x_adv = DeepFool(linear, overshoot=0.0)(x, y)
    torch.testing.assert_close(size(x_adv, x), nearest + 1e-4, rtol=0, atol=1e-7)
    assert (linear(x_adv).argmax(1) != y).all()


def test_a_radius_per_sample_clips(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    free = DeepFool(net)(x, y)
    needed = size(free, x)
    eps = needed * torch.tensor([0.5, 1.01] * 4)
    x_adv = DeepFool(net)(x, y, eps=eps)
    assert (size(x_adv, x) <= eps + 1e-12).all()
    assert torch.equal(x_adv[1::2], free[1::2]), "a radius that is large enough changes nothing"
    torch.testing.assert_close(size(x_adv, x)[::2], eps[::2])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fast_engine_fools_the_live_model(
    precision: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    x_adv = DeepFool(net, engine="fast", precision=precision)(x, y)
    assert (net(x_adv).argmax(1) != y).all()


def test_samples_tied_by_batch_statistics_stay_together(bn_net: nn.Module, x: Tensor) -> None:
    y = torch.arange(8)
    x_adv = DeepFool(bn_net, 0.1, steps=5, bn="train")(x, y)
    assert (size(x_adv, x) <= 0.1 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -1.0}, ValueError, r"^eps: -1\.0, expected a number >= 0"),
        ({"overshoot": -0.1}, ValueError, r"^overshoot: -0\.1, expected a number >= 0"),
        ({"overshoot": math.inf}, ValueError, r"^overshoot: inf, expected a number >= 0"),
        ({"candidates": 1}, ValueError, r"^candidates: 1, expected at least 2"),
        ({"candidates": "all"}, TypeError, r"^candidates: 'all', expected an int"),
        ({"steps": 1.5}, TypeError, r"^steps: 1\.5, expected an int"),
        ({"lo": 1.0, "hi": 0.0}, ValueError, r"^lo, hi: 1\.0, 0\.0, expected lo <= hi"),
        ({"restarts": 2}, TypeError, "restarts"),
    ],
)
def test_bad_arguments(
    options: dict[str, Any], error: type[Exception], message: str, net: nn.Module
) -> None:
    with pytest.raises(error, match=message):
        DeepFool(net, **options)


def test_bad_calls(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(TypeError, match=r"^alpha: given, but DeepFool finds its own step sizes"):
        DeepFool(net)(x, y, alpha=0.1)
    with pytest.raises(ValueError, match=r"^y: 10, expected a class in 0 \.\.\. 9"):
        DeepFool(net)(x, y * 0 + 10)
