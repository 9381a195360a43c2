"""A forward may do with its images what it likes: those of the caller and of the attack stay what they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, EngineOptions, masking_report
from iaat_fast.epsilon import EpsilonMemory
from tests.attacks.every_attack import EVERY_ATTACK


class Normalised(nn.Module):
    """Normalises its images: in place, behind autograd's back, or in memory of its own."""

    def __init__(self, net: nn.Module, how: str) -> None:
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            x = x.sub_(0.5).div_(0.25)
        elif self.how == "through data":
            x.data.sub_(0.5)
            x = x / 0.25
        else:
            x = (x - 0.5) / 0.25
        return self.net(x)


@pytest.fixture
def plain(net: nn.Module) -> Normalised:
    return Normalised(net, "in its own memory").eval()


@pytest.mark.parametrize("how", ["in place", "through data"])
@pytest.mark.parametrize("name", EVERY_ATTACK)
def test_an_attack_does_what_it_does_to_a_forward_that_writes_nowhere(
    name: str, how: str, net: nn.Module, plain: nn.Module, x: Tensor
) -> None:
    y, before = plain(x).argmax(1), x.clone()
    expected = EVERY_ATTACK[name](plain)(x, y)
    made = EVERY_ATTACK[name](Normalised(net, how).eval())(x, y)
    assert torch.equal(made, expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "exact"},
        {"engine": "fast"},
        {"engine": EngineOptions(fold=False)},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_so_it_does_with_every_engine(
    options: dict[str, Any], net: nn.Module, plain: nn.Module, x: Tensor
) -> None:
    y, before = plain(x).argmax(1), x.clone()
    start = x + 0.01
    expected = PGD(plain, 0.1, 0.03, 3, **options)(x, y, start=start)
    made = PGD(Normalised(net, "in place").eval(), 0.1, 0.03, 3, **options)(x, y, start=start)
    assert torch.equal(made, expected)
    assert torch.equal(x, before)


def test_images_that_are_only_judged_stay_what_they_are(
    net: nn.Module, plain: nn.Module, x: Tensor
) -> None:
    before = x.clone()
    assert torch.equal(PGD(Normalised(net, "in place")).logits(x), plain(x))
    with torch.inference_mode():
        PGD(Normalised(net, "in place")).logits(x)
    assert torch.equal(x, before)


def test_the_masking_report_and_the_radii_are_those_of_a_forward_that_writes_nowhere(
    net: nn.Module, plain: nn.Module, x: Tensor
) -> None:
    writes, y = Normalised(net, "in place").eval(), plain(x).argmax(1)
    assert masking_report(writes, x, y, 0.1, 0.03, 2) == masking_report(plain, x, y, 0.1, 0.03, 2)
    for strategy in ("batched", "lazy", "sequential"):
        chosen = []
        for model in (writes, plain):
            memory = EpsilonMemory(8, gamma=0.1, beta=0.5, strategy=strategy)
            pgd = PGD(model, 0.1, 0.03, 2, seed=0)
            chosen.append(memory.select(pgd, x, y, torch.arange(8), judge=True, seed=0))
        assert all(torch.equal(a, b) for a, b in zip(*chosen, strict=True))
