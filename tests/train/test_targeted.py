"""Random targets and a weaker attack for the selection, as ImageNet is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.data import ImageData, fetch
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack, make_selector
from iaat_fast.train.step import TrainingStep, make_memory

INDEX = torch.arange(12)


@pytest.fixture
def images(tiny_data: ImageData) -> tuple[Tensor, Tensor]:
    return fetch(tiny_data.train, INDEX)


class Recorder:
    """Passes calls on to an attack, and keeps how many steps each took and to which class."""

    def __init__(self, attack: PGD, calls: list[tuple[int, int]]) -> None:
        self.attack, self.calls = attack, calls
        self.lo, self.hi, self.bn = attack.lo, attack.hi, attack.bn

    def __call__(self, x: Tensor, y: Tensor, **how: Any) -> Tensor:
        self.calls.append((self.attack.steps, how["candidate"]))
        return self.attack(x, y, **how)

    def logits(self, x: Tensor) -> Tensor:
        return self.attack.logits(x)


@pytest.mark.parametrize("strategy", ["lazy", "batched", "sequential"])
def test_the_weaker_attack_selects_and_the_stronger_makes_the_images(
    tiny_model: Callable[[], nn.Module], images: tuple[Tensor, Tensor], strategy: str
) -> None:
    x, y = images
    pgd = PGD(tiny_model().eval(), alpha=0.05, steps=7, targeted="random")
    weak, calls = pgd.with_steps(3, 0.05), list[tuple[int, int]]()
    memory, twin = (
        EpsilonMemory(24, 0.1, 0.5, init=0.2, strategy=strategy, eps_min=0.05) for _ in range(2)
    )
    chosen = memory.select(
        Recorder(weak, calls), x, y, INDEX, seed=3, final_attack=Recorder(pgd, calls)
    )
    assert [steps for steps, _ in calls[:-1]] == [3] * (len(calls) - 1)
    assert calls[-1] == (7, 3)
    assert torch.equal(chosen.eps, twin.select(weak, x, y, INDEX, seed=3).eps)
    expected = pgd(x, y, eps=chosen.eps, index=INDEX, seed=3, candidate=3)
    assert torch.equal(chosen.x_adv, expected)


def test_with_steps_shares_the_network_and_leaves_the_attack_alone(
    tiny_model: Callable[[], nn.Module], images: tuple[Tensor, Tensor]
) -> None:
    x, y = images
    model = tiny_model().eval()
    pgd = PGD(model, eps=0.2, alpha=0.05, steps=7)
    before = pgd(x, y, seed=1)
    weak = pgd.with_steps(2, 0.1)
    assert weak.network is pgd.network
    assert torch.equal(weak(x, y, seed=1), PGD(model, eps=0.2, alpha=0.1, steps=2)(x, y, seed=1))
    assert weak.stats.gradients == 2 * len(x)
    assert torch.equal(pgd(x, y, seed=1), before)
    assert pgd.stats.gradients == 7 * len(x)
    with pytest.raises(ValueError, match="steps: -1"):
        pgd.with_steps(-1, 0.1)


def test_the_selector_follows_the_configuration(
    tiny_config: Callable[..., TrainConfig], tiny_model: Callable[[], nn.Module]
) -> None:
    config = tiny_config(attack={"alpha_rule": "scaled", "alpha": 0.01})
    attack = make_attack(config.attack, tiny_model())
    assert make_selector(config, attack) is attack
    config = tiny_config(
        attack={"alpha_rule": "scaled", "alpha": 0.01}, epsilon={"selection_steps": 2}
    )
    selector = make_selector(config, attack)
    assert (attack.steps, selector.steps) == (3, 2)
    assert callable(selector.alpha)
    assert selector.alpha(torch.tensor([0.3])).item() == pytest.approx(0.3)


class Follows(nn.Module):
    """Logits that grow with three fixed pixels, so that a targeted attack raises its target's pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.flatten(1)[:, :3]


@pytest.mark.parametrize("method", ["adv", "iaat"])
def test_training_attacks_climb_towards_one_other_class_drawn_per_step(
    tiny_config: Callable[..., TrainConfig], method: str
) -> None:
    config = tiny_config(
        method=method,
        attack={"targeted": "random", "eps": 0.2, "alpha": 0.1, "steps": 4},
        epsilon={"eps_w": 0.2, "misclassified_input": "adversarial"},
    )
    model = Follows()
    size = 300
    x, y = torch.full((size, 1, 1, 3), 0.5), torch.arange(size) % 3
    memory = make_memory(config, size, torch.device("cpu"))
    step = TrainingStep(
        config, model, memory, torch.optim.SGD(model.parameters(), lr=0.1), torch.device("cpu")
    )
    drawn = []
    for seed in (1, 2):
        prepared = step.method.prepare(x, y, torch.arange(size), epoch=0, seed=seed).x_adv
        assert prepared is not None
        moved = (prepared - x).flatten(1)
        target = moved.argmax(1)
        # The target's pixel rises to the edge, the others fall.
        assert torch.allclose(moved[torch.arange(size), target], torch.tensor(0.2))
        assert ((moved > 0).sum(1) == 1).all()
        assert (target != y).all()
        drawn.append(target)
    shares = torch.bincount((drawn[0] - y) % 3, minlength=3) / size
    # 300 fair draws: five standard deviations are 0.14.
    assert abs(shares[1].item() - 0.5) < 0.15
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("method", ["trades", "mma"])
def test_methods_whose_attack_has_no_target_refuse_one(
    tiny_config: Callable[..., TrainConfig], method: str
) -> None:
    config = tiny_config(method=method, attack={"targeted": "random"})
    model, device = Follows(), torch.device("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=rf"attack.targeted: 'random', .*--targeted no.*{method}"):
        TrainingStep(config, model, make_memory(config, 3, device), optimizer, device)


def test_a_sample_withstands_if_it_keeps_its_true_class_whatever_the_target() -> None:
    """Algorithm 2's test is untargeted: sample 0 falls to a class that is not its target, too."""
    model = Follows().eval()
    x = torch.tensor([[0.50, 0.45, 0.1], [0.9, 0.1, 0.1]]).view(2, 1, 1, 3)
    y = torch.tensor([0, 0])
    pgd = PGD(model, alpha=0.1, steps=5, targeted="random", random_start=False)
    memory = EpsilonMemory(2, 0.1, 1.0, init=0.1)
    targets = {
        seed: (pgd(x, y, eps=0.1, seed=seed) - x).flatten(1)[0].argmax().item() for seed in range(9)
    }
    seed = next(seed for seed, target in targets.items() if target == 2)
    chosen = memory.select(pgd, x, y, torch.arange(2), seed=seed)
    # Aimed at class 2, every other logit falls by the same: sample 0 keeps class 0 at all candidates.
    assert chosen.choice.tolist() == [0, 0]
    seed = next(seed for seed, target in targets.items() if target == 1)
    chosen = memory.select(pgd, x, y, torch.arange(2), seed=seed)
    assert chosen.choice.tolist() == [2, 0]
