"""AutoAttack on randomised models: version "rand", verdicts over several draws, and the warning of the standard one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import APGD, FABT, PGD, Square
from iaat_fast.attacks.attack import Attack
from iaat_fast.data import Split
from iaat_fast.evaluate import EvalTarget, autoattack, evaluate_suite, robust_accuracy
from iaat_fast.evaluate.autoattack import rand
from iaat_fast.evaluate.suites import single

EPS = 0.02


class Linear(nn.Module):
    """Two opposite logits and one that never wins: from x, the boundary is at a distance that is known."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
        self.weight, self.noise = nn.Parameter(weight, requires_grad=False), noise

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        margin = (x - 0.5 + self.noise * torch.randn_like(x)) @ self.weight
        return torch.stack([margin, -margin, -margin.abs() - 1], 1)

    def radii(self, x: Tensor) -> Tensor:
        """The distance [N] of images to the boundary of the model without noise."""
        return ((x.flatten(1) - 0.5) @ self.weight).abs() / self.weight.abs().sum()


class InTurn(nn.Module):
    """Every 20th forward predicts the opposite."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.forwards = Linear(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.net(x) * (-1e6 if self.forwards % 20 == 0 else 40)


@pytest.fixture
def x() -> Tensor:
    return 0.3 + 0.4 * torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def y(x: Tensor) -> Tensor:
    return Linear()(x).argmax(1)


def small(model: nn.Module, steps: int = 10, eot: int = 4) -> dict[str, Attack]:
    """Version "rand" with a small budget."""
    return {
        f"apgd-{loss}": APGD(model, steps=steps, loss=loss, early_stop=False, eot=eot)
        for loss in ("ce", "dlr")
    }


def theirs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The samples that stand in pyautoattack's version "rand", with the same small budget."""
    peer = pytest.importorskip("pyautoattack.autoattack")
    attack = peer.AutoAttack(model, eps=EPS, seed=0, version="rand")
    attack.apgd.n_iter, attack.apgd.eot_iter = 10, 4
    _, predicted = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return predicted == y


def test_the_version_for_randomised_models_is_the_published_one() -> None:
    attacks = rand(Linear())
    assert list(attacks) == ["apgd-ce", "apgd-dlr"]
    for attack, loss in zip(attacks.values(), ("ce", "dlr"), strict=True):
        assert type(attack) is APGD
        assert (attack.steps, attack.restarts, attack.loss) == (100, 1, loss)
        assert attack.network.eot == 20
    peer = pytest.importorskip("pyautoattack.autoattack")
    released = peer.AutoAttack(Linear(), eps=EPS, version="rand")
    assert released.attacks_to_run == list(attacks)
    assert (released.apgd.n_iter, released.apgd.n_restarts, released.apgd.eot_iter) == (100, 1, 20)


def test_a_deterministic_model_gets_the_verdicts_of_the_released_code(x: Tensor, y: Tensor) -> None:
    model = Linear()
    expected = model.radii(x) > EPS
    assert 10 < expected.sum() < 30
    assert torch.equal(theirs(model, x, y), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = autoattack(model, x, y, EPS, attacks=small(model))
        named = autoattack(model, x, 1 - y, EPS, version="rand")  # nothing is left to attack
    assert torch.equal(result.correct, expected)
    assert [stage.attack for stage in named.stages] == ["apgd-ce", "apgd-dlr"]
    assert not named.natural.any()


def test_a_randomised_model_gets_them_where_chance_does_not_decide(x: Tensor, y: Tensor) -> None:
    """The distance to the boundary is that of x plus 0.003 times a normal number in a draw, half of it in the mean."""
    model = Linear(noise=0.01)
    torch.manual_seed(0)
    sure = float(4 * model.noise * model.weight.norm() / model.weight.abs().sum())
    radii = model.radii(x)
    falls, stands = radii < EPS - sure, radii > EPS + sure
    assert falls.sum() > 3
    assert stands.sum() > 3
    for correct in (
        theirs(model, x, y),
        autoattack(model, x, y, EPS, attacks=small(model)).correct,
    ):
        assert correct[stands].all()
        assert not correct[falls].any()


def test_one_lucky_draw_of_twenty_changes_no_verdict(x: Tensor, y: Tensor) -> None:
    sure = Linear().radii(x) > 2 * EPS
    assert sure.sum() > 3
    x, y = x[sure][:3], y[sure][:3]
    attacks: dict[str, Attack] = {
        **small(model := InTurn(), steps=3, eot=20),
        "square": Square(model, n_queries=3),
    }
    model.forwards = 18
    with pytest.warns(RuntimeWarning, match="two forwards"):
        result = autoattack(model, x, y, EPS, attacks=attacks, batch_size=2)
    assert result.natural.all()
    assert result.correct.all()
    model.forwards = 17
    alone = {"square": Square(model, n_queries=1)}
    assert not autoattack(model, x, y, EPS, attacks=alone, batch_size=2).natural[:2].any()


def test_all_verdicts_are_of_as_many_draws_as_the_largest_number(x: Tensor, y: Tensor) -> None:
    seen: list[Tensor] = []

    class Seeing(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().forward(images)

    model = Seeing()
    attacks: dict[str, Attack] = {
        "pgd": PGD(model, steps=1, eot=4),
        "square": Square(model, n_queries=1),
    }
    autoattack(model, x, y, 1e-3, attacks=attacks)
    assert all(torch.equal(images, x) for images in seen[2:6]), "clean images"
    assert all(torch.equal(images, seen[-1]) for images in seen[-4:]), "images of Square"


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_accuracies_of_one_draw_are_warned_of(noise: float, x: Tensor, y: Tensor) -> None:
    def messages(measured: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            measured()
        return [str(warning.message) for warning in caught]

    model = Linear(noise)
    split = Split(x.mul(255).byte().permute(0, 2, 3, 1), y)
    options: dict[str, Any] = {"eps": EPS, "alpha": 0.01, "steps": 1, "restarts": 1}
    target = EvalTarget.of(model, split)
    for measured in (
        lambda: robust_accuracy(model, split, **options),
        lambda: evaluate_suite(target, single(**{**options, "eps": [EPS]})),
    ):
        found = messages(measured)
        assert len(found) == (noise > 0)
        assert all("two forwards of the same images differ" in message for message in found)


def test_a_model_that_takes_only_whole_batches_is_not_looked_at(x: Tensor, y: Tensor) -> None:
    class Whole(Linear):
        def forward(self, images: Tensor) -> Tensor:
            assert len(images) == 40
            return super().forward(images)

    model = Whole()
    result = autoattack(
        model, x, y, EPS, attacks={"pgd": PGD(model, EPS, 2 * EPS, 1)}, batch_size=40
    )
    assert torch.equal(result.correct, model.radii(x) > EPS)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.3])
def test_one_draw_of_a_randomised_model_is_warned_of(noise: float, x: Tensor, y: Tensor) -> None:
    """By attacks of one draw alone, in one line, once; no random number of the caller's is used up."""
    model = Linear(noise)
    attacks: dict[str, Attack] = {"fab-t": FABT(model, steps=1, search_steps=0)}

    def messages(attacks: dict[str, Attack]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            autoattack(model, x[:2], y[:2], 0.0, attacks=attacks)
        return [str(warning.message) for warning in caught]

    found = messages(attacks)
    assert len(found) == (noise > 0)
    for message in found:
        assert message.startswith("model: two forwards of the same images differ")
        assert "version 'rand' (part autoattack-rand), or attacks with eot > 1" in message
        assert "\n" not in message
    assert not messages({"pgd": PGD(model, steps=1, eot=2)})


def test_looking_for_chance_takes_two_forwards_of_a_few_images(x: Tensor, y: Tensor) -> None:
    class Counting(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(len(images))
            return super().forward(images)

    model = Counting()
    y = 1 - y  # wrong, so that nothing is attacked
    autoattack(model, x, y, EPS, attacks={"pgd": PGD(model)})
    assert model.seen == [8, 8, 40]


def test_the_dlr_needs_three_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"^model: 2 classes, expected at least 3 .*rand version"):
        autoattack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), 0.1, version="rand")
