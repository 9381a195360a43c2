"""`Attack.run`: images with verdicts, distances and costs, at one radius or several; what attacks aim at; `repr`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import (
    APGD,
    APGDT,
    FABT,
    FGSM,
    PGD,
    AttackResult,
    DeepFool,
    Square,
    scaled_step,
)
from tests.attacks.every_attack import EVERY_ATTACK

RADII = (0.02, 0.004, 0.012)

RESIZING = ("DIFGSM", "TIFGSM")
"""The model sees images of theirs that are not near x."""

every_attack = pytest.mark.parametrize("name", EVERY_ATTACK)


class Counting(nn.Module):
    """A network that counts the forwards and backwards of images by which of x they are nearest to."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.known = net, x.flatten(1)
        self.forwards, self.backwards = [0] * len(x), [0] * len(x)

    def forward(self, images: Tensor) -> Tensor:
        samples = torch.cdist(images.detach().flatten(1), self.known).argmin(1).tolist()
        logits = self.net(images)
        for sample in samples:
            self.forwards[sample] += 1
        if logits.requires_grad:
            logits.register_hook(lambda grad: self._count(samples))
        return logits

    def _count(self, samples: list[int]) -> None:
        for sample in samples:
            self.backwards[sample] += 1


@every_attack
def test_a_run_gives_the_images_of_a_call_and_what_the_model_says(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = EVERY_ATTACK[name](net)
    result = attack.run(x, y)
    assert torch.equal(result.x_adv, attack(x, y))
    assert torch.equal(result.predictions, attack.logits(result.x_adv).argmax(1))
    assert torch.equal(result.success, result.predictions != y)
    assert torch.equal(result.distances, (result.x_adv - x).abs().flatten(1).amax(1))
    assert result.forwards.dtype is result.backwards.dtype is torch.int64


@every_attack
def test_a_sample_that_falls_at_a_small_radius_is_kept_and_not_attacked_at_a_larger(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = EVERY_ATTACK[name](net)
    result = attack.run(x, y, list(RADII), index=torch.arange(8) + 5)
    standing = torch.arange(8)
    for place in sorted(range(3), key=RADII.__getitem__):
        eps = RADII[place]
        alone = attack(x[standing], y[standing], eps=eps, index=standing + 5)
        assert torch.equal(result.x_adv[place, standing], alone)
        assert (result.distances[place] <= eps + 1e-6).all()
        at = attack.logits(alone).argmax(1)
        assert torch.equal(result.predictions[place, standing], at)
        assert torch.equal(result.success[place, standing], at != y[standing])
        fallen = standing[at != y[standing]]
        for later in range(3):
            if RADII[later] > eps:
                assert torch.equal(result.x_adv[later, fallen], result.x_adv[place, fallen])
                assert (result.forwards[later, fallen] == 0).all()
                assert result.success[later, fallen].all()
        standing = standing[at == y[standing]]


def test_some_fall_at_each_of_these_radii(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Without which the test above would say little."""
    fallen = EVERY_ATTACK["APGD"](net).run(x, y, list(RADII)).success.sum(1)
    assert 0 < fallen[1] < fallen[2] < fallen[0]


@every_attack
def test_the_passes_of_each_sample_are_those_that_the_model_counts(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    counting = Counting(net, x)
    y = y.clone()
    y[0] = (y[0] + 1) % 10
    attack = EVERY_ATTACK[name](counting, engine="exact")
    result = attack.run(x, y, list(RADII))
    assert result.forwards.sum() == sum(counting.forwards)
    assert result.backwards.sum() == sum(counting.backwards)
    if name not in RESIZING:
        assert result.forwards.sum(0).tolist() == counting.forwards
        assert result.backwards.sum(0).tolist() == counting.backwards
    # Of the one that is wrong as it is: its verdict, and for "kl" what is predicted at x.
    assert result.forwards[:, 0].sum() == (2 if name == "kl" else 1)
    assert result.backwards[:, 0].sum() == 0
    assert attack.stats.gradients == sum(counting.backwards)
    assert attack.stats.planned >= attack.stats.gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PGD", "APGD", "Square"])
def test_passes_through_a_copy_are_counted_too(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    attack = EVERY_ATTACK[name](net, engine="fast")
    result = attack.run(x, y)
    assert result.backwards.sum() == attack.stats.gradients
    assert (result.forwards > result.backwards).all()


def test_radii_per_sample_may_be_in_any_order(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = EVERY_ATTACK["PGD"](net.double())
    x = x.double()
    first = torch.linspace(0.01, 0.03, 8).double()
    result = pgd.run(x, y, [first, 0.02])
    assert (result.distances <= torch.stack([first, torch.full_like(first, 0.02)]) + 1e-6).all()
    least = torch.minimum(first, torch.full_like(first, 0.02))
    alone = pgd(x, y, eps=least)
    place = (first > 0.02).long()
    torch.testing.assert_close(result.x_adv[place, torch.arange(8)], alone, atol=1e-12, rtol=0)
    assert torch.equal(pgd.run(x, y, first).x_adv, pgd(x, y, eps=first))


def test_what_is_wrong_as_it_is_is_a_success_and_left_alone(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    result = EVERY_ATTACK["PGD"](net).run(x, (y + 1) % 10, [0.0, 0.1])
    assert result.success.all()
    assert torch.equal(result.x_adv, torch.stack([x, x]))
    assert torch.equal(result.predictions[0], y)
    assert result.backwards.sum() == 0
    assert result.distances.sum() == 0


def test_batch_statistics_keep_all_samples_in_the_batch(bn_net: nn.Module, x: Tensor) -> None:
    pgd = EVERY_ATTACK["PGD"](bn_net, bn="train")
    y = pgd.logits(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    result = pgd.run(x, y)
    assert torch.equal(result.x_adv[1:], pgd(x, y)[1:])
    assert torch.equal(result.x_adv[0], x[0])
    assert (result.backwards == 3).all()


def test_verdicts_update_no_running_statistics(bn_net: nn.Module, x: Tensor) -> None:
    pgd = EVERY_ATTACK["PGD"](bn_net, bn="train_update")
    y = EVERY_ATTACK["PGD"](bn_net, bn="train").logits(x).argmax(1)
    before = bn_net[1].num_batches_tracked.clone()
    pgd.run(x, y)
    assert bn_net[1].num_batches_tracked - before == 3


def test_a_run_of_no_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = EVERY_ATTACK["PGD"](net)
    result = pgd.run(x[:0], y[:0], [0.1, 0.2])
    assert isinstance(result, AttackResult)
    assert (result.x_adv.shape, result.success.shape) == ((2, 0, 3, 8, 8), (2, 0))
    assert pgd.run(x[:0], y[:0]).forwards.shape == (0,)


def test_a_run_in_channels_last_stays_there(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x = x.contiguous(memory_format=torch.channels_last)
    result = EVERY_ATTACK["PGD"](net).run(x, y)
    assert result.x_adv.is_contiguous(memory_format=torch.channels_last)


def test_a_run_without_a_seed_takes_the_same_draws_at_every_radius(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    with pytest.warns(RuntimeWarning, match="0 steps"):
        square = Square(net, n_queries=0)
    result = square.run(x, y, [1e-4, 2e-4])
    assert not result.success.any()
    assert torch.equal((result.x_adv[0] - x).sign(), (result.x_adv[1] - x).sign())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilons": []}, "epsilons: empty, expected at least one radius"),
        ({"epsilons": [0.1, 8.0]}, r"epsilons\[1\]: 8.0, expected at most 1"),
        ({"epsilons": [-0.1]}, r"epsilons\[0\]: -0.1, expected a number >= 0"),
        ({"epsilons": [torch.zeros(3)]}, r"epsilons\[0\]: shape \(3,\), expected a float or one"),
        ({"epsilons": torch.tensor([0.1, 0.2])}, r"epsilons: shape \(2,\), expected a float or one"),
        ({"epsilons": ["a"]}, r"epsilons\[0\]: 'a', expected a float or a Tensor"),
        ({"epsilons": object()}, "epsilons: object, expected a float, a Tensor, a list"),
        ({"alpha": torch.full((16,), 0.1)}, r"alpha: shape \(16,\), expected a float or \[8\]"),
        ({"start": torch.zeros(16, 3, 8, 8)}, r"start: shape \(16, 3, 8, 8\), expected that of x"),
    ],
)  # fmt: skip
def test_bad_arguments_of_a_run_are_named(
    arguments: dict[str, Any], message: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        EVERY_ATTACK["PGD"](net).run(x, y, **arguments)


def test_a_class_that_the_model_lacks_is_no_success(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^y: 10, expected a class in 0 \.\.\. 9"):
        EVERY_ATTACK["PGD"](net).run(x, y * 0 + 10)


def test_logits_of_nan_are_no_success(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match="expected numbers; has the model"):
        EVERY_ATTACK["PGD"](lambda images: net(images) * float("nan")).run(x, y)


# What attacks aim at.

AIMING = ("PGD", "APGD", "Square", "APGDT", "FABT")


def last_class(logits: Tensor, y: Tensor) -> Tensor:
    return torch.where(y == logits.shape[1] - 1, 0, logits.shape[1] - 1)


@pytest.mark.parametrize("name", AIMING[:3])
@pytest.mark.parametrize("rule", ["least-likely", last_class])
def test_a_rule_aims_at_the_class_that_it_names(
    rule: Any, name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    logits = net(x)
    target = logits.argmin(1) if rule == "least-likely" else last_class(logits, y)
    assert (target != y).all()
    options = {"eps": 0.004, "seed": 0}
    kinds: dict[str, Any] = {
        "PGD": lambda **o: PGD(net, alpha=0.01, steps=3, **options, **o),
        "APGD": lambda **o: APGD(net, steps=5, early_stop=False, **options, **o),
        "Square": lambda **o: Square(net, n_queries=5, **options, **o),
    }
    ruled, told = kinds[name](targeted=rule), kinds[name](targeted=True)
    # Where no sample gets any wrong class, at which the rule's attack would stop.
    x_adv = ruled(x, y)
    assert torch.equal(net(x_adv).argmax(1), y)
    assert torch.equal(x_adv, told(x, target))


@pytest.mark.parametrize("name", ["APGDT", "FABT"])
def test_a_target_of_the_callers_is_reached(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    target = net(x).argsort(1, descending=True)[:, 4]
    attack = {"APGDT": APGDT, "FABT": FABT}[name](net, steps=20, seed=0, targeted=True)
    result = attack.run(x, target, 0.3)
    assert torch.equal(result.success, result.predictions == target)
    assert result.success.sum() >= 6
    # The attack's own targets are nearer classes.
    own = EVERY_ATTACK[name](net).run(x, y, 0.3)
    assert (own.predictions != target).sum() >= 6


def test_the_nearest_image_of_a_target_is_near_its_lower_bound() -> None:
    torch.manual_seed(3)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 6)).double()
    x = 0.4 + 0.2 * torch.rand(12, 3, 4, 4).double()
    logits, weight = linear(x), linear[1].weight
    target = logits.argmin(1)
    behind = logits - logits.gather(1, target[:, None])
    apart = (weight[target].unsqueeze(1) - weight).abs().sum(2).clamp(min=1e-9)
    bound = (behind / apart).amax(1)
    result = FABT(linear, eps=None, steps=30, targeted=True).run(x, target)
    assert result.success.all()
    assert (result.distances >= bound - 1e-6).all()
    assert result.distances.median() < 1.5 * bound.median()


@pytest.mark.parametrize("name", AIMING)
def test_a_rule_that_gives_no_wrong_class_is_refused(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    cases: list[tuple[Any, str]] = [
        (lambda logits, y: y.float(), r"targeted: returned torch.float32, expected int64 \[8\]"),
        (lambda logits, y: y[:3], r"targeted: returned \(3,\) on cpu, expected \[8\] on cpu"),
        (lambda logits, y: y, r"targeted: returned class \d, expected one of 0 ... 9 other than"),
        (lambda logits, y: y + 10, r"targeted: returned class \d+, expected one of 0 ... 9 other"),
    ]
    for rule, message in cases:
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            EVERY_ATTACK[name](net, targeted=rule)(x, y)


def test_the_least_likely_class_is_none_that_is_masked(net: nn.Module, x: Tensor) -> None:
    masked = torch.zeros(10)
    masked[3:] = -torch.inf

    def three(images: Tensor) -> Tensor:
        return net(images) + masked

    y = three(x).argmax(1)
    least = three(x)[:, :3].argmin(1)
    options = {"eps": 0.1, "alpha": 0.02, "steps": 3, "seed": 0}
    expected = PGD(three, targeted=True, **options)(x, least)
    assert torch.equal(PGD(three, targeted="least-likely", **options)(x, y), expected)


# What a repr says.


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (lambda net: PGD(net), "PGD(Sequential, eps=8/255, alpha=2/255, steps=10)"),
        (
            lambda net: PGD(net, alpha=scaled_step(5), restarts=5, targeted="random", seed=3),
            "PGD(Sequential, eps=8/255, alpha=scaled_step, steps=10, restarts=5, seed=3, targeted='random')",
        ),
        (
            lambda net: FGSM(net, torch.zeros(4), precision="bf16"),
            "FGSM(Sequential, eps=tensor[4], precision='bf16')",
        ),
        (
            lambda net: APGDT(lambda images: net(images), 4 / 255, targeted=last_class),
            "APGDT(test_a_repr_names_what_matters, eps=4/255, steps=100, targeted=last_class)",
        ),
        (lambda net: DeepFool(net), "DeepFool(Sequential, eps=1, steps=50)"),
        (
            lambda net: Square(net, n_queries=100),
            "Square(Sequential, eps=8/255, n_queries=100)",
        ),
    ],
)
def test_a_repr_names_what_matters(attack: Any, text: str, net: nn.Module) -> None:
    shown = repr(attack(net))
    if "APGDT" in text:  # the name of the function that has made the model
        shown = "APGDT(test_a_repr_names_what_matters" + shown[shown.index(", eps") :]
    assert shown == text


@every_attack
def test_every_attack_has_a_repr(name: str, net: nn.Module) -> None:
    kind = type(attack := EVERY_ATTACK[name](net))
    assert repr(attack).startswith(f"{kind.__name__}(Sequential, eps=")
    assert "steps=7" in repr(attack.with_steps(7, None)) or kind in (FGSM, Square)
