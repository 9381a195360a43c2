"""Accuracies, checked where the truth is known: linear models, plain loops, models that misbehave."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, Square
from iaat_fast.data import Split, fetch
from iaat_fast.evaluate import (
    EvalTarget,
    accuracy,
    autoattack,
    check_model,
    natural_verdicts,
    robust_accuracy,
)
from iaat_fast.ops import random_start_linf

SIZE = 6


def random_split(samples: int, classes: int, *, low: int = 0, high: int = 256) -> Split:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, SIZE, SIZE, 1)
    images = torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(classes, (samples,), generator=generator))


def everything(split: Split) -> tuple[Tensor, Tensor]:
    return fetch(split, torch.arange(len(split)))


@pytest.fixture
def linear() -> nn.Linear:
    """Three classes that look at different rows of pixels, all weights positive.

    Every attack then lowers the rows of the true class and raises the others, whichever class it
    aims at, so the worst point of the ball is a corner that PGD cannot miss.
    """
    torch.manual_seed(0)
    layer = nn.Linear(SIZE * SIZE, 3, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        for k in range(3):
            layer.weight[k, 12 * k : 12 * (k + 1)] = torch.rand(12) + 0.1
    return layer


def smallest_fooling_radius(linear: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """min over j of (w_y - w_j) x / ||w_y - w_j||_1; at most 0 where misclassified."""
    weight = linear.weight.detach().double()
    difference = weight[y][:, None] - weight[None]  # [N, C, pixels]
    margin = (difference @ x.flatten(1).double()[:, :, None]).squeeze(2)
    radius = margin / difference.abs().sum(2).clamp(min=1e-9)
    return radius.masked_fill(nn.functional.one_hot(y, len(weight)).bool(), torch.inf).amin(1)


@pytest.mark.parametrize("eps", [0.0, 2 / 255, 8 / 255, 0.1])
def test_a_linear_model_is_measured_exactly(linear: nn.Linear, eps: float) -> None:
    # Pixels stay 64/255 away from 0 and 1, so that the box does not cut the ball.
    split = random_split(300, 3, low=64, high=192)
    x, _ = everything(split)
    # Of five samples, four are labelled as the model has it.
    labels = torch.where(torch.arange(300) % 5 > 0, linear(x.flatten(1)).argmax(1), split.labels)
    split = Split(split.images, labels)
    radius = smallest_fooling_radius(linear, x, split.labels)
    assert (radius - eps).abs().min() > 1e-6, "a sample too close to call in float32"

    model = nn.Sequential(nn.Flatten(), linear)
    result = robust_accuracy(model, split, eps=eps, alpha=0.02, steps=11, restarts=2)

    assert torch.equal(result.correct, radius > eps)
    assert result.accuracy == (radius > eps).double().mean()
    if eps == 0:
        assert result.accuracy == accuracy(model, split)
    if eps == 8 / 255:
        assert 0.1 < result.accuracy < 0.7, "both verdicts must occur for this to test anything"


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


@pytest.fixture
def labelled(network: nn.Module) -> Split:
    """Images labelled by the network itself, which is natural accuracy 1."""
    split = random_split(150, 4)
    return Split(split.images, network(everything(split)[0]).argmax(1))


ATTACK = {"eps": 0.02, "alpha": 0.004, "steps": 5, "restarts": 3}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 64, 150])
def test_verdicts_do_not_depend_on_the_batch_size(
    network: nn.Module, labelled: Split, batch_size: int
) -> None:
    whole = robust_accuracy(network, labelled, **ATTACK, batch_size=256)
    assert 0.2 < whole.accuracy < 0.8
    split = robust_accuracy(network, labelled, **ATTACK, batch_size=batch_size)
    assert torch.equal(split.correct, whole.correct)


def test_the_first_samples_get_the_verdicts_they_get_among_all(
    network: nn.Module, labelled: Split
) -> None:
    whole = robust_accuracy(network, labelled, **ATTACK)
    first = robust_accuracy(network, labelled.first(40), **ATTACK)
    assert torch.equal(first.correct, whole.correct[:40])


def test_samples_get_the_verdicts_that_they_get_among_all(
    network: nn.Module, labelled: Split
) -> None:
    whole = robust_accuracy(network, labelled, **ATTACK).correct
    samples = torch.arange(1, len(labelled), 3)
    part = robust_accuracy(network, labelled, **ATTACK, samples=samples)
    assert torch.equal(part.correct[samples], whole[samples])
    assert int(part.correct.sum()) == int(whole[samples].sum())
    assert part.accuracy == whole[samples].double().mean().item()
    other = Split(labelled.images, labelled.labels.clone())
    other.labels[samples[:10]] = (labelled.labels[samples[:10]] + 1) % 4
    right = natural_verdicts(network, other, samples=samples)
    assert right.tolist() == [False] * 10 + [True] * (len(samples) - 10)


def test_a_sample_is_robust_if_the_last_iterate_of_every_restart_is_right(
    network: nn.Module, labelled: Split
) -> None:
    x, y = everything(labelled)
    eps, alpha, steps = 0.02, 0.008, 4
    pgd = PGD(network, eps, alpha, steps)
    standing = torch.ones(len(y), dtype=torch.bool)
    verdicts = []
    for restart in range(4):
        start = random_start_linf(x, eps, torch.tensor([5, restart, 0]))
        x_adv = pgd(x, y, start=start)
        verdicts.append(network(x_adv).argmax(1) == y)
        standing &= verdicts[-1]
    assert any(not torch.equal(verdict, standing) for verdict in verdicts)

    attack = {"eps": eps, "alpha": alpha, "steps": steps, "restarts": 4, "seed": 5}
    result = robust_accuracy(network, labelled, **attack)
    assert torch.equal(result.correct, standing)


class Reversed(nn.Module):
    """The gradient of the logits has the wrong sign: attacks help."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1))
        return 2 * logits.detach() - logits


def test_what_counts_is_the_attacked_image_also_of_samples_misclassified_clean(
    linear: nn.Linear,
) -> None:
    model, split = Reversed(linear), random_split(200, 3, low=120, high=136)
    assert accuracy(model, split) < 0.5
    result = robust_accuracy(model, split, eps=0.2, alpha=0.1, steps=10, restarts=2)
    assert result.accuracy == 1.0


def test_natural_accuracy_counts(linear: nn.Linear) -> None:
    split = random_split(50, 3)
    x, y = everything(split)
    right = int((linear(x.flatten(1)).argmax(1) == y).sum())
    model = nn.Sequential(nn.Flatten(), linear)
    for batch_size in (1, 7, 64):
        assert accuracy(model, split, batch_size=batch_size) == right / 50


def test_the_model_is_as_it_was_and_measured_in_eval_mode(linear: nn.Linear) -> None:
    frozen = nn.BatchNorm2d(1).eval()
    model = nn.Sequential(nn.BatchNorm2d(1), frozen, nn.Dropout(0.9), nn.Flatten(), linear).train()
    frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = random_split(60, 3)

    natural = accuracy(model, split)
    result = robust_accuracy(model, split, eps=0.01, alpha=0.01, steps=2, restarts=2)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model[2].training
    assert not frozen.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert natural == accuracy(model.eval(), split)
    again = robust_accuracy(model, split, eps=0.01, alpha=0.01, steps=2, restarts=2)
    assert torch.equal(again.correct, result.correct)


def test_the_seed_draws_the_starts_and_the_callers_generator_is_left_alone(
    network: nn.Module, labelled: Split
) -> None:
    one_step = {"eps": 0.05, "alpha": 0.001, "steps": 1, "restarts": 1}
    state = torch.get_rng_state()
    zero = robust_accuracy(network, labelled, **one_step, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(robust_accuracy(network, labelled, **one_step, seed=0).correct, zero.correct)
    one = robust_accuracy(network, labelled, **one_step, seed=1)
    assert not torch.equal(one.correct, zero.correct)


def test_nan_logits_are_never_right_and_stop_an_attack(linear: nn.Linear) -> None:
    split = Split(random_split(20, 1).images, torch.zeros(20, dtype=torch.int64))
    with torch.no_grad():
        linear.weight[0, 0] = torch.nan
    model = nn.Sequential(nn.Flatten(), linear)
    # argmax gives class 0, where the NaN is: the label of every sample.
    assert bool((model(everything(split)[0]).argmax(1) == split.labels).all())
    assert accuracy(model, split) == 0.0
    with pytest.raises(ValueError, match="NaN"):
        robust_accuracy(model, split, eps=0.1, alpha=0.1, steps=1, restarts=1)


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.sum((1, 2, 3)) * 0, x.mean((1, 2, 3)).round() * 2 - 1], dim=1)


def test_masked_gradients_are_counted_and_warned_about_once() -> None:
    split = random_split(30, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = robust_accuracy(
            Masked(), split, eps=0.1, alpha=0.1, steps=2, restarts=1, batch_size=10
        )
    entries = 30 * SIZE * SIZE * 2
    assert (result.gradients.total, result.gradients.zero) == (entries, entries)
    assert len(caught) == 1
    assert "gradient entries are 0" in str(caught[0].message)


def test_progress_is_told_after_each_batch(network: nn.Module, labelled: Split) -> None:
    seen: list[tuple[int, int]] = []
    robust_accuracy(
        network, labelled, **ATTACK, batch_size=64, progress=lambda *at: seen.append(at)
    )
    everything = 3 * 150
    assert ATTACK["restarts"] == 3
    assert seen[:3] == [(64, everything), (128, everything), (150, everything)]
    assert seen[-1] == (everything, everything)
    assert seen == sorted(seen)


def test_restarts_attack_the_survivors_in_full_batches(network: nn.Module, labelled: Split) -> None:
    sizes: list[int] = []
    hook = network.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    result = robust_accuracy(network, labelled, **{**ATTACK, "steps": 1}, batch_size=64)
    hook.remove()
    once = robust_accuracy(
        network, labelled, **{**ATTACK, "steps": 1, "restarts": 1}, batch_size=64
    )
    standing = int(once.correct.sum())
    assert 0 < standing < len(labelled)
    assert result.gradients.planned == 3 * len(labelled)
    assert len(labelled) + standing <= result.gradients.gradients < result.gradients.planned
    # Two looks at whether the model is random.
    assert sizes[:2] == [8, 8]
    # A gradient and a verdict for every batch: those of all samples, then full ones of those that stand.
    assert sizes[2:8] == [64, 64, 64, 64, 22, 22]
    assert sizes[8] == min(64, standing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps: -0.1"),
        ({"eps": float("nan")}, "eps: nan"),
        ({"eps": 8}, r"^eps: 8, expected at most 1, the width of \[0, 1\]; 8/255\?"),
        ({"alpha": 0.0}, "alpha: 0.0"),
        ({"steps": -1}, "steps: -1"),
        ({"restarts": 0}, "restarts: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
    ],
)
def test_bad_arguments_are_named(
    network: nn.Module, labelled: Split, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        robust_accuracy(network, labelled, **ATTACK | change)


def test_an_empty_split_is_refused(network: nn.Module, labelled: Split) -> None:
    empty = Split(labelled.images[:0], labelled.labels[:0])
    with pytest.raises(ValueError, match="split: empty"):
        accuracy(network, empty)
    with pytest.raises(ValueError, match="split: empty"):
        robust_accuracy(network, empty, **ATTACK)


@pytest.mark.parametrize(
    "measure",
    [
        check_model,
        accuracy,
        natural_verdicts,
        lambda model, split: robust_accuracy(model, split, eps=0.1, alpha=0.1, steps=1, restarts=1),
        lambda model, split: autoattack(model, split, eps=0.1),
        lambda model, split: EvalTarget.of(model, split),
    ],
)
def test_one_logit_is_refused_also_where_all_labels_are_0(measure: Any) -> None:
    split = Split(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"^model: one logit per image, expected at least two cla"):
        measure(model, split)


def test_a_model_that_does_not_fit_the_images_or_labels_is_refused(labelled: Split) -> None:
    flat = nn.Flatten()
    with pytest.raises(ValueError, match=r"does not take images of shape \[1, 1, 6, 6\]"):
        check_model(nn.Conv2d(3, 1, 3), labelled)
    with pytest.raises(ValueError, match=r"returned \[1, 3\] .* classes > 3"):
        check_model(nn.Sequential(flat, nn.Linear(36, 3)), labelled)
    with pytest.raises(ValueError, match="returned tuple"):
        check_model(nn.MaxPool2d(2, return_indices=True), labelled)
    check_model(nn.Sequential(flat, nn.Linear(36, 4)), labelled)


class Shifts(nn.Module):
    """Normalises its images, in place or not."""

    def __init__(self, layer: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = layer, in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5) if self.in_place else x - 0.5
        logits: Tensor = self.layer(x.flatten(1))
        return logits


@pytest.mark.parametrize("caller", ["plain", "autocast"])
def test_neither_a_forward_that_writes_into_images_nor_autocast_changes_an_accuracy(
    linear: nn.Linear, caller: str
) -> None:
    split = random_split(60, 3, low=64, high=192)

    def measured(*, in_place: bool) -> list[Tensor]:
        model = Shifts(linear, in_place=in_place)
        attacks = {
            "pgd": PGD(model, 0.05, 0.02, 2, seed=0),
            "square": Square(model, 0.05, 3, seed=0),
        }
        pgd = robust_accuracy(model, split, eps=0.05, alpha=0.02, steps=2, restarts=2)
        ensemble = autoattack(model, split, eps=0.05, attacks=attacks)
        return [natural_verdicts(model, split), pgd.correct, ensemble.correct]

    expected = measured(in_place=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=caller == "autocast"):
        found = measured(in_place=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
