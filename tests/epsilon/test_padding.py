"""Samples attacked again are filled up to few sizes of batch where steps are captured; nothing is seen of the rest.

On a CPU nothing is padded, so here the CPU is taken for a device that captures.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.attacks.active_set import bucket
from iaat_fast.epsilon import EpsilonMemory, Selection, strategies
from tests.attacks.test_cudagraph import played

N, GAMMA, BETA, STEPS = 64, 0.02, 0.1, 5


@pytest.fixture
def x() -> Tensor:
    """Images of class 1 of the threshold model, which fall at radii from -0.05 to 0.15."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(N, 1, 2, 2, generator=generator) * 0.2 + 0.45


Y, INDEX = torch.ones(N, dtype=torch.int64), torch.arange(N).flip(0)


class Counted:
    """An attack that keeps the statistics of its calls."""

    lo, hi = 0.0, 1.0

    def __init__(self, attack: PGD) -> None:
        self.attack, self.logits, self.bn = attack, attack.logits, attack.bn
        self.gradients: list[
            tuple[int, int]
        ] = []  # of each call: the candidate's number, and how many

    def __call__(self, x: Tensor, y: Tensor, **how: Any) -> Tensor:
        made = self.attack(x, y, **how)
        self.gradients.append((how["candidate"], self.attack.stats.gradients))
        return made


def select(
    model: nn.Module, x: Tensor, init: float = 0.04, **options: Any
) -> tuple[Selection, Counted]:
    memory = EpsilonMemory(N, GAMMA, BETA, init=init, **options)
    attack = Counted(PGD(model, alpha=GAMMA, steps=STEPS))
    selection = memory.select(attack, x, Y, INDEX, seed=3)
    assert torch.equal(memory.values[INDEX], selection.eps)
    return selection, attack


@pytest.mark.parametrize("strategy", ["lazy", "sequential"])
@pytest.mark.parametrize("final", ["exact", "reuse"])
@pytest.mark.parametrize("init", [0.0, 0.01, 0.04, 0.2])
def test_padding_changes_no_bit_of_radii_choices_and_images(
    threshold: nn.Module,
    x: Tensor,
    strategy: str,
    final: str,
    init: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """float32, of a model that sums 4 pixels: in a batch of any size in the same order."""
    plain, _ = select(threshold, x, init, strategy=strategy, final=final)
    monkeypatch.setattr(strategies, "_PADDED_ON", ("cpu",))
    padded, _ = select(threshold, x, init, strategy=strategy, final=final)
    for one, other in zip(plain, padded, strict=True):
        assert torch.equal(one, other)


def test_padding_leaves_the_choices_of_a_real_network_alone(
    real_data: Any,
    first_images: tuple[Tensor, Tensor],
    resnet4b: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images may differ where a batch of another size rounds otherwise, and flips the sign of a gradient near 0."""
    images, labels = first_images
    found = []
    for padded_on in ((), ("cpu",)):
        monkeypatch.setattr(strategies, "_PADDED_ON", padded_on)
        memory = EpsilonMemory(100, 1.9 / 255, 0.1, init=6 / 255, strategy="lazy", final="reuse")
        pgd = PGD(resnet4b, alpha=2 / 255, steps=5)
        found.append(memory.select(pgd, images, labels, torch.arange(100), seed=3))
    plain, padded = found
    assert len(plain.choice.unique()) == 3
    assert torch.equal(plain.eps, padded.eps)
    assert torch.equal(plain.choice, padded.choice)
    assert (plain.x_adv == padded.x_adv).double().mean() > 0.999


def test_padding_counts_as_work_done(
    threshold: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards: list[int] = []
    threshold.register_forward_hook(lambda _, args, __: forwards.append(len(args[0])))
    (_, choice, _), plain = select(threshold, x, strategy="lazy", final="reuse")
    fooled, twice = int((choice != 0).sum()), int((choice == 2).sum())
    assert plain.gradients == [(0, N * STEPS), (1, fooled * STEPS), (2, twice * STEPS)]

    monkeypatch.setattr(strategies, "_PADDED_ON", ("cpu",))
    forwards.clear()
    _, padded = select(threshold, x, strategy="lazy", final="reuse")
    sizes = bucket(fooled, N), bucket(twice, N)
    assert fooled < sizes[0] < N, "nothing would be padded"
    assert padded.gradients == [(0, N * STEPS)] + [
        (k, size * STEPS) for k, size in enumerate(sizes, start=1)
    ]
    assert sum(forwards) == (N + sizes[0]) * (STEPS + 1) + sizes[1] * STEPS


def test_batch_statistics_are_those_of_the_samples_alone(
    net: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding would be in them: the third candidate of the sequential strategy is attacked without."""
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    y = net(images).argmax(1)
    found = []
    for padded_on in ((), ("cpu",)):
        monkeypatch.setattr(strategies, "_PADDED_ON", padded_on)
        memory = EpsilonMemory(12, 0.02, BETA, init=0.03, strategy="sequential", final="reuse")
        attack = Counted(PGD(net, alpha=0.01, steps=3, bn="train"))
        found.append((memory.select(attack, images, y, torch.arange(12), seed=1), attack.gradients))
    (plain, gradients), (padded, same) = found
    assert 0 < int((plain.choice == 2).sum()) < 12
    assert gradients == same
    assert torch.equal(plain.x_adv, padded.x_adv)


def test_the_steps_on_fooled_samples_are_captured(
    threshold: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32 selections, each with another number of samples that fall, with a graph for each of a few sizes."""
    monkeypatch.setattr(strategies, "_PADDED_ON", ("cpu",))
    captured, tape = played(threshold, alpha=GAMMA, steps=STEPS)
    eager = PGD(threshold, alpha=GAMMA, steps=STEPS)
    sizes = []
    for fallen in range(32):
        images = torch.full((N, 1, 2, 2), 0.9)
        images[torch.randperm(N, generator=torch.Generator().manual_seed(fallen))[:fallen]] = 0.52
        found = []
        for attack in (captured, eager):
            memory = EpsilonMemory(N, GAMMA, BETA, init=0.04, strategy="lazy")
            found.append(memory.select(attack, images, Y, INDEX, seed=fallen))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
        assert int((found[0].choice != 0).sum()) == fallen
        sizes += [N, bucket(fallen, N), N]
    calls = Counter(size for size in sizes if size)
    assert (
        len(calls) == 11
    )  # N, and 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32 of the 31 numbers that fall
    # The first of each is the warm-up, and before the very first the number of classes is not known.
    steps = calls.total() - len(calls) - 1
    # A forward, of one size, tells after each call but its own warm-up what the steps have frozen.
    forwards = calls.total() - 2
    assert tape.replayed == steps + forwards
    assert tape.captured == sum(number > 1 for number in calls.values()) + 1
