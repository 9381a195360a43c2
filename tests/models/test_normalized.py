"""A model over normalised images, wrapped, is the same model over images in [0, 1]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.attacks import PGD
from iaat_fast.models import STATISTICS, normalized

MEAN, STD = STATISTICS["imagenet"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def test_it_gives_the_model_what_it_was_trained_on(model: nn.Module) -> None:
    x = torch.rand(2, 3, 6, 6)
    network = normalized(model, MEAN, torch.tensor(STD))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    assert torch.equal(network(x), model((x - mean) / std))
    assert network.model is model
    assert not network.training
    assert not network.normalize.training  # type: ignore[union-attr]


def test_a_step_is_the_sign_of_the_gradient_in_pixels(model: nn.Module) -> None:
    x, y = torch.rand(4, 3, 6, 6), torch.arange(4)
    network = normalized(model, MEAN, STD)
    found = PGD(network, 0.03, 0.03, 1, random_start=False, engine="exact")(x, y)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(network(leaf), y), leaf)
    assert torch.equal(found, (x + 0.03 * grad.sign()).clamp(x - 0.03, x + 0.03).clamp(0, 1))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (
            (123.7, 116.3, 103.5),
            STD,
            r"^mean: \[123\.7, .*, expected numbers in \[0, 1\]; divide by",
        ),
        (MEAN, (0.2, 0, 0.2), r"^std: \[0\.2, 0\.0, 0\.2\], expected values above 0"),
        (MEAN, (0.2, -1, 0.2), r"^std: .*, expected numbers in \[0, 1\]$"),
        (MEAN, STD[:2], r"^std: .*, expected 3 values as in mean"),
        (0.5, 0.5, r"^mean: shape \[\], expected \[C\], a number per channel"),
        ("imagenet", STD, r"^mean: 'imagenet', expected a number per channel"),
    ],
)
def test_other_statistics_are_refused(model: nn.Module, mean: Any, std: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        normalized(model, mean, std)


def test_a_function_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"^model: function, expected an nn\.Module"):
        normalized(lambda x: x, MEAN, STD)  # type: ignore[arg-type]
