"""Threads that attack one model get what they would get alone, and leave it as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, Square
from iaat_fast.attacks.model.mode import attacked
from iaat_fast.epsilon import EpsilonMemory

LABELS = torch.arange(8)


def in_threads(work: Callable[[int], Any], count: int = 3) -> list[Any]:
    """What they return; all at once."""
    barrier = threading.Barrier(count, timeout=60)

    def meet(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(meet, range(count), timeout=120))


@pytest.mark.parametrize(
    ("shared", "options"),
    [
        ("model", {}),
        ("model", {"bn": "train"}),
        ("attack", {"bn": "train"}),
        ("attack", {"engine": "fast"}),
        ("network inside", {"bn": "train"}),
        ("function", {"bn": "train"}),
    ],
)
def test_attacks_in_threads_do_not_disturb_each_other(
    shared: str, options: dict[str, Any], bn_net: nn.Module, x: Tensor
) -> None:
    bn_net.train()
    before = {name: value.clone() for name, value in bn_net.state_dict().items()}

    def model() -> Any:
        if shared == "network inside":
            return nn.Sequential(nn.Identity(), bn_net)
        return (lambda x: bn_net(x)) if shared == "function" else bn_net

    options = {"eps": 0.05, "alpha": 0.01, "steps": 5, **options}
    expected = [PGD(model(), **options)(x, LABELS, seed=seed) for seed in range(3)]
    one = PGD(model(), **options)

    def work(seed: int) -> Tensor:
        attack = one if shared == "attack" else PGD(model(), **options)
        return torch.stack([attack(x, LABELS, seed=seed) for _ in range(3)])

    for images, wanted in zip(in_threads(work), expected, strict=True):
        assert all(torch.equal(found, wanted) for found in images)
    assert all(module.training for module in bn_net.modules())
    assert all(torch.equal(value, before[name]) for name, value in bn_net.state_dict().items())


def test_selections_in_threads_give_the_radii_of_one(bn_net: nn.Module, x: Tensor) -> None:
    bn_net.train()

    def work(seed: int) -> Tensor:
        memory = EpsilonMemory(8, gamma=0.01, beta=0.5, init=0.02)
        pgd = PGD(bn_net, alpha=0.01, steps=3)
        return memory.select(pgd, x, LABELS, LABELS, seed=seed, judge=True).x_adv

    expected = [work(seed) for seed in range(3)]
    assert all(map(torch.equal, in_threads(work), expected))


def test_a_forward_that_attacks_its_own_model_does_not_wait_for_itself(
    net: nn.Module, x: Tensor
) -> None:
    class Purifies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.inner = net, [PGD(net, steps=1, seed=0)]

        def forward(self, x: Tensor) -> Any:
            return self.net(self.inner[0](x.detach().clamp(0, 1), LABELS) + x - x.detach())

    x_adv = in_threads(lambda _: PGD(Purifies(), steps=2, seed=0)(x, LABELS), count=2)
    assert torch.equal(*x_adv)


def test_a_call_that_fails_lets_the_next_thread_in(net: nn.Module, x: Tensor) -> None:
    pgd = PGD(net, seed=0)

    def work(number: int) -> Any:
        try:
            return pgd(x, LABELS + 10 * (number == 0))
        except ValueError as error:
            return str(error)

    refused, *images = in_threads(work)
    assert refused.startswith("y: 17")
    assert torch.equal(*images)


def test_other_models_do_not_wait_but_for_a_switch_of_the_process(net: nn.Module) -> None:
    """TF32 is allowed for the whole process."""

    def enters(model: nn.Module, *, exclusively: bool = False) -> bool:
        entered = threading.Event()

        def work() -> None:
            with attacked(model, "eval", exclusively=exclusively):
                entered.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        waiting.append(thread)
        return entered.wait(0.05 if model is net or exclusively else 60)

    waiting: list[threading.Thread] = []
    with attacked(net, "eval"):
        assert enters(nn.Identity())
        assert not enters(net)
        assert not enters(nn.Identity(), exclusively=True)
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()


def test_a_search_without_gradients_waits_as_well(bn_net: nn.Module, x: Tensor) -> None:
    bn_net.train()
    expected = Square(bn_net, n_queries=5, seed=0)(x, LABELS)
    found = in_threads(lambda _: Square(bn_net, n_queries=5, seed=0)(x, LABELS))
    assert all(torch.equal(images, expected) for images in found)
