"""Algorithm 2 on a model whose radii are known, row by row of the two protocols."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD
from iaat_fast.epsilon import EpsilonMemory

GAMMA, BETA = 0.02, 0.1
PREV = 0.1


def images(radii: list[float]) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 2, 2] of class 1 that fall at the given radii."""
    x = torch.tensor(radii).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) + 0.5
    return x.contiguous(), torch.ones(len(radii), dtype=torch.int64)


def select(
    model: nn.Module, radii: list[float], init: float = PREV, *, correct: Any = None, **options: Any
) -> tuple[list[float], list[int], EpsilonMemory, Tensor]:
    x, y = images(radii)
    memory = EpsilonMemory(len(radii), GAMMA, BETA, init=init, **options)
    pgd = PGD(model, alpha=0.05, steps=5)
    eps, choice, x_adv = memory.select(pgd, x, y, torch.arange(len(radii)), correct=correct, seed=0)
    assert torch.equal(memory.values, eps)
    return eps.tolist(), choice.tolist(), memory, x_adv


def smoothed(candidate: float, prev: float = PREV) -> Any:
    return pytest.approx((1 - BETA) * prev + BETA * candidate, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
@pytest.mark.parametrize("final", ["exact", "reuse"])
def test_a_sample_moves_towards_its_radius(threshold: nn.Module, strategy: str, final: str) -> None:
    """At prev = 0.1: a sample that falls at 0.13 survives 0.12; at 0.11 only 0.1; at 0.09, 0.05 and -0.1 neither."""
    eps, choice, _, _ = select(
        threshold, [0.13, 0.11, 0.09, 0.05, -0.1], strategy=strategy, final=final
    )
    assert choice == [0, 1, 2, 2, 2]
    assert eps[0] == smoothed(PREV + GAMMA)
    assert eps[1] == smoothed(PREV)
    assert eps[2:] == [smoothed(PREV - GAMMA)] * 3


@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
def test_the_radii_converge_to_within_gamma_of_the_true_ones(
    threshold: nn.Module, strategy: str
) -> None:
    radii = [0.03, 0.1, 0.2]
    x, y = images(radii)
    memory = EpsilonMemory(3, GAMMA, BETA, init=PREV, strategy=strategy)
    pgd = PGD(threshold, alpha=scaled, steps=3)
    for visit in range(80):
        memory.select(pgd, x, y, torch.arange(3), seed=visit)
    # One visit moves a radius by beta * gamma; it stops growing where prev + gamma falls.
    expected = torch.tensor(radii)
    assert (memory.values <= expected + BETA * GAMMA).all()
    assert (memory.values >= expected - GAMMA - BETA * GAMMA).all()


def scaled(eps: Tensor) -> Tensor:
    return eps.clamp(min=1e-3)


def test_paper_clamp_of_the_result_and_released_clamp_of_the_candidate(
    threshold: nn.Module,
) -> None:
    small = 0.001
    paper, _, _, _ = select(threshold, [-0.1], init=small, clamp="result")
    released, _, _, _ = select(threshold, [-0.1], init=small, clamp="candidate")
    assert paper == [0.0]  # 0.9 * 0.001 + 0.1 * (0.001 - 0.02) = -0.001
    assert released == [smoothed(0.0, small)]


def test_paper_and_released_rule_for_misclassified_clean_samples(threshold: nn.Module) -> None:
    """A misclassified sample that the attack happens to put right: Algorithm 2 would let its radius grow."""
    correct = torch.tensor([True, False])
    paper, _, _, _ = select(threshold, [0.3, 0.3], correct=correct, misclassified="algorithm2")
    released, _, _, _ = select(threshold, [0.3, 0.3], correct=correct, misclassified="shrink")
    assert paper == [smoothed(PREV + GAMMA)] * 2
    assert released == [smoothed(PREV + GAMMA), smoothed(0.0)]


def test_imagenets_lower_bound_and_an_upper_bound(threshold: nn.Module) -> None:
    eps, _, _, _ = select(threshold, [-0.1, 0.3], eps_min=0.099, eps_max=0.101)
    assert eps == pytest.approx([0.099, 0.101])


def test_paper_and_released_warm_up() -> None:
    memory = EpsilonMemory(5, GAMMA, BETA)
    index, correct = torch.tensor([3, 1]), torch.tensor([True, False])
    eps = memory.warm_up(index, 0.03, correct=correct)
    assert eps.tolist() == pytest.approx([0.03, 0.03])
    assert memory.values.tolist() == pytest.approx([0, 0.03, 0, 0.03, 0])
    eps = memory.warm_up(index, 0.05, correct=correct, rule="correct")
    assert eps.tolist() == pytest.approx([0.05, 0.0])
    assert memory.values.tolist() == pytest.approx([0, 0.0, 0, 0.05, 0])
    assert eps.dtype is torch.float32


def test_the_memory_starts_at_init_and_holds_float32() -> None:
    assert EpsilonMemory(3, GAMMA, BETA).values.tolist() == [0.0, 0.0, 0.0]
    memory = EpsilonMemory(3, GAMMA, BETA, init=0.25)
    assert memory.values.tolist() == [0.25] * 3
    assert memory.values.dtype is torch.float32
    assert len(memory) == 3


def test_only_visited_samples_change(threshold: nn.Module) -> None:
    memory = EpsilonMemory(7, GAMMA, BETA, init=PREV)
    x, y = images([0.3, -0.1])
    memory.select(PGD(threshold, alpha=0.05, steps=2), x, y, torch.tensor([6, 2]), seed=0)
    assert (memory.values != torch.full((7,), PREV)).tolist() == [
        False, False, True, False, False, False, True,
    ]  # fmt: skip
    assert memory.values[6] > PREV > memory.values[2]


def test_saved_radii_are_loaded() -> None:
    memory = EpsilonMemory(3, GAMMA, BETA)
    saved = torch.tensor([0.1, 0.2, 0.3])
    memory.load(saved)
    assert torch.equal(memory.values, saved)
    memory.values[0] = 0.5
    assert saved[0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            torch.zeros(4),
            r"^values: torch.float32 of shape \(4,\), expected float32 of shape \(3,\)",
        ),
        (torch.zeros(3).double(), r"^values: torch.float64 of shape \(3,\), expected float32"),
        (torch.tensor([0.1, -0.1, 0.1]), r"^values: a radius is negative or NaN"),
        (torch.tensor([0.1, math.nan, 0.1]), r"^values: a radius is negative or NaN"),
    ],
)
def test_radii_that_are_not_loaded(values: Tensor, message: str) -> None:
    memory = EpsilonMemory(3, GAMMA, BETA, init=PREV)
    with pytest.raises(ValueError, match=message):
        memory.load(values)
    assert torch.equal(memory.values, torch.full((3,), PREV))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, r"^size: 0, expected at least 1"),
        ({"gamma": -0.1}, r"^gamma: -0\.1, expected a number >= 0"),
        ({"gamma": math.nan}, r"^gamma: nan, expected"),
        ({"gamma": math.inf}, r"^gamma: inf, expected a number >= 0, finite"),
        ({"beta": 1.5}, r"^beta: 1\.5, expected a number in \[0, 1\]"),
        ({"init": -1.0}, r"^init: -1\.0, expected a number >= 0"),
        ({"eps_min": -1.0}, r"^eps_min: -1\.0, expected a number >= 0"),
        ({"eps_min": 0.2, "eps_max": 0.1}, r"^eps_max: 0\.1, expected a number >= eps_min, 0\.2"),
        ({"eps_max": math.nan}, r"^eps_max: nan, expected"),
        (
            {"strategy": "eager"},
            r"^strategy: 'eager', expected one of 'batched', 'lazy', 'sequential'",
        ),
        ({"final": "none"}, r"^final: 'none', expected one of 'exact', 'reuse'"),
        ({"clamp": "both"}, r"^clamp: 'both', expected one of 'result', 'candidate'"),
        (
            {"misclassified": "skip"},
            r"^misclassified: 'skip', expected one of 'algorithm2', 'shrink'",
        ),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpsilonMemory(**{"size": 3, "gamma": GAMMA, "beta": BETA, **changes})


@pytest.mark.parametrize(
    ("options", "changes", "error", "message"),
    [
        (
            {},
            {"index": torch.tensor([0, 3])},
            ValueError,
            r"^index: 3 at index 1, expected a sample in 0 \.\.\. 2",
        ),
        (
            {},
            {"index": torch.tensor([0, -1])},
            ValueError,
            r"^index: -1 at index 1, expected a sample in",
        ),
        ({}, {"index": torch.tensor([0])}, ValueError, r"^index: shape \(1,\), expected \[2\]"),
        (
            {},
            {"index": torch.tensor([0.0, 1.0])},
            TypeError,
            r"^index: dtype torch.float32, expected int64",
        ),
        ({}, {"y": torch.tensor([1, 2])}, ValueError, r"^y: 2, expected a class in 0 \.\.\. 1"),
        (
            {"misclassified": "shrink"},
            {},
            ValueError,
            r"^correct: None, but misclassified='shrink' needs it",
        ),
        (
            {"misclassified": "shrink"},
            {"correct": torch.ones(3).bool()},
            ValueError,
            r"^correct: torch.bool of shape \(3,\), expected bool \[2\]",
        ),
        (
            {},
            {"bn": "train"},
            ValueError,
            r"^strategy: 'batched' with an attack in bn='train', expected 'sequential'",
        ),
        (
            {"strategy": "lazy"},
            {"bn": "train"},
            ValueError,
            r"^strategy: 'lazy' with an attack in bn='train'",
        ),
    ],
)
def test_a_selection_refused_changes_nothing_and_attacks_nothing(
    threshold: nn.Module,
    options: dict[str, Any],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    calls: list[int] = []
    threshold.register_forward_hook(lambda *_: calls.append(1))
    memory = EpsilonMemory(3, GAMMA, BETA, init=PREV, **options)
    x, y = images([0.1, 0.1])
    changes = {"index": torch.tensor([0, 1]), "y": y, "bn": "eval", "correct": None, **changes}
    attack = PGD(threshold, alpha=0.05, steps=2, bn=changes["bn"])
    with pytest.raises(error, match=message):
        memory.select(attack, x, changes["y"], changes["index"], correct=changes["correct"])
    assert torch.equal(memory.values, torch.full((3,), PREV))
    assert len(calls) <= 1  # the number of classes is known after the first forward


@pytest.mark.parametrize(
    ("index", "options", "error", "message"),
    [
        ([0, 3], {}, ValueError, r"^index: 3 at index 1, expected a sample in 0 \.\.\. 2"),
        ([0, -1], {}, ValueError, r"^index: -1 at index 1, expected a sample in 0 \.\.\. 2"),
        ([0.0, 1.0], {}, TypeError, r"^index: dtype torch.float32, expected int64"),
        ([0, 1], {"eps_w": -0.1}, ValueError, r"^eps_w: -0\.1, expected a number >= 0"),
        ([0, 1], {"eps_w": math.nan}, ValueError, r"^eps_w: nan, expected"),
        (
            [0, 1],
            {"rule": "all"},
            ValueError,
            r"^rule: 'all', expected one of 'visited', 'correct'",
        ),
        ([0, 1], {"rule": "correct"}, ValueError, r"^correct: None, but rule 'correct' needs it"),
        (
            [0, 1],
            {"rule": "correct", "correct": torch.ones(3).bool()},
            ValueError,
            r"^correct: torch.bool of shape \(3,\), expected bool \[2\]",
        ),
    ],
)
def test_a_warm_up_refused_changes_nothing(
    index: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    memory = EpsilonMemory(3, GAMMA, BETA, init=PREV)
    with pytest.raises(error, match=message):
        memory.warm_up(torch.tensor(index), **{"eps_w": 0.03, **options})
    assert torch.equal(memory.values, torch.full((3,), PREV))


def test_a_model_of_one_logit_is_refused_and_leaves_the_memory_alone() -> None:
    memory = EpsilonMemory(4, gamma=0.1, beta=0.5, init=0.2)
    pgd = PGD(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), steps=1)
    zeros = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^model: one logit per image, expected at least two cla"):
        memory.select(pgd, torch.zeros(4, 1, 2, 2), zeros, torch.arange(4))
    assert memory.values.tolist() == pytest.approx([0.2] * 4)


def test_a_model_that_diverges_leaves_the_memory_alone(threshold: nn.Module) -> None:
    memory = EpsilonMemory(3, GAMMA, BETA, init=PREV)
    x, y = images([0.1, 0.1])
    attack = PGD(lambda a: threshold(a) * math.nan, alpha=0.05, steps=1)
    with pytest.raises(ValueError, match=r"^logits: .*has the model diverged"):
        memory.select(attack, x, y, torch.tensor([0, 1]))
    assert torch.equal(memory.values, torch.full((3,), PREV))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.9}, r"^gamma: 1\.9, expected at most 1, the width of \[0, 1\]; 1\.9/255\?"),
        ({"eps_max": 8.0}, r"^eps_max: 8\.0, expected at most 1, the width of \[0, 1\]; 8/255\?"),
        ({"eps_min": 4.0}, r"^eps_min: 4\.0, expected at most 1, the width of \[0, 1\]; 4/255\?"),
        (
            {"init": 8.0},
            r"^eps: 8\.0 at index 0, expected at most 1, the width of \[0, 1\]; 8/255\?",
        ),
    ],
)
def test_radii_of_another_scale_are_refused(
    threshold: nn.Module, options: dict[str, float], message: str
) -> None:
    memory = EpsilonMemory(**{"size": 2, "gamma": GAMMA, "beta": BETA, **options})
    before = memory.values.clone()
    x, y = images([0.1, 0.2])
    with pytest.raises(ValueError, match=message):
        memory.select(PGD(threshold, alpha=0.05, steps=1), x, y, torch.arange(2), seed=0)
    assert torch.equal(memory.values, before)


class Steadfast(nn.Module):
    """Class 1 whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1).mean(1) + 1
        return torch.stack([-margin, margin], 1)


@pytest.mark.parametrize("strategy", ["batched", "lazy", "sequential"])
@pytest.mark.parametrize(("init", "expected"), [(0.99, 0.992), (0.999, 1.0), (1.0, 1.0)])
def test_no_radius_grows_beyond_the_box(init: float, expected: float, strategy: str) -> None:
    eps, choice, _, _ = select(Steadfast(), [0.2], init=init, strategy=strategy)
    assert choice == [0]
    assert eps == pytest.approx([expected])
    assert eps[0] <= 1
