"""The losses beside cross-entropy: their values, their gradients, and PGD on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD, losses
from iaat_fast.attacks.targets import random_targets, target_draws

EPS, ALPHA = 8 / 255, 2 / 255


def plain(loss: str, z: Tensor, goal: Tensor, targeted: bool, source: Tensor | None) -> Tensor:
    """The papers' formulas, row by row; the loss of a goal, which grows as the goal's logit falls."""
    rows = []
    for i, (row, g) in enumerate(zip(z, goal.tolist(), strict=True)):
        ordered = row.sort(descending=True).values
        others = torch.cat([row[:g], row[g + 1 :]])
        rival = others.max()
        if loss == "ce":
            rows.append(-row.log_softmax(0)[g])
        elif loss == "cw":
            rows.append(rival - row[g])
        elif not targeted:
            rows.append(-(row[g] - rival) / (ordered[0] - ordered[2] + 1e-12))
        else:
            rival = rival if source is None else row[source[i]]
            spread = ordered[0] - (ordered[2] + ordered[3]) / 2 + 1e-12
            rows.append((rival - row[g]) / spread)
    return torch.stack(rows)


CASES = [
    pytest.param(loss, targeted, known, id=f"{loss}{' targeted' * targeted}{' from y' * known}")
    for loss in losses.CLASS_LOSSES
    for targeted, known in [(False, False), (True, False), (True, True)]
]


@pytest.fixture
def z() -> Tensor:
    return 4 * torch.randn(60, 7, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("loss", "targeted", "known"), CASES)
def test_the_gradient_is_that_of_the_formula(
    loss: str, targeted: bool, known: bool, z: Tensor
) -> None:
    goal = torch.arange(60) % 7
    source = (goal + 1 + torch.arange(60) % 6) % 7 if known else None
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain(loss, leaf, goal, targeted, source).sum(), leaf)
    found = losses.cotangent(loss, z, goal, targeted=targeted, source=source)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("loss", "targeted", "known"), CASES)
def test_the_value_is_that_of_the_formula(
    loss: str, targeted: bool, known: bool, z: Tensor
) -> None:
    """Of cross-entropy the log-odds."""
    goal = torch.arange(60) % 7
    source = (goal + 1 + torch.arange(60) % 6) % 7 if known else None
    found = losses.value(loss, z, goal, targeted=targeted, source=source)
    expected = plain(loss, z, goal, targeted, source)
    torch.testing.assert_close(F.softplus(found) if loss == "ce" else found, expected)


@pytest.mark.parametrize("loss", losses.CLASS_LOSSES)
def test_candidates_share_their_samples_goals(loss: str, z: Tensor) -> None:
    goal = torch.arange(30) % 7
    for function in (losses.value, losses.cotangent):
        both = function(loss, z, goal, targeted=False)
        assert torch.equal(both, function(loss, z, goal.repeat(2), targeted=False))


def test_log_odds_order_what_cross_entropy_no_longer_tells_apart() -> None:
    z = torch.tensor([[200.0, 0.0, 1.0], [300.0, 0.0, 1.0]])
    y = torch.tensor([0, 0])
    assert torch.equal(F.cross_entropy(z, y, reduction="none"), torch.zeros(2))
    first, second = losses.value("ce", z, y, targeted=False)
    assert first > second


def test_equal_logits_have_a_finite_gradient() -> None:
    z, y = torch.ones(2, 5), torch.tensor([0, 4])
    for targeted in (False, True):
        assert losses.cotangent("dlr", z, y, targeted=targeted).isfinite().all()
        assert torch.equal(losses.value("dlr", z, y, targeted=targeted), torch.zeros(2))


def plain_pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    goal: Tensor,
    loss: str,
    targeted: bool,
    steps: int,
) -> Tensor:
    """The plain loop, with autograd through the loss as one writes it for a batch."""
    x_adv = x
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        z = model(leaf)
        mine = z.gather(1, goal.view(-1, 1))[:, 0]
        rival = z.scatter(1, goal.view(-1, 1), -torch.inf).max(1).values
        value = rival - mine
        if loss == "dlr":
            ordered = z.sort(dim=1, descending=True).values
            low = (ordered[:, 2] + ordered[:, 3]) / 2 if targeted else ordered[:, 2]
            value = value / (ordered[:, 0] - low + 1e-12)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        x_adv = x_adv + (-ALPHA if targeted else ALPHA) * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["cw", "dlr"])
def test_pgd_is_bit_for_bit_the_plain_loop(
    loss: str, targeted: bool, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    goal = (y + 3) % 10 if targeted else y
    pgd = PGD(net, EPS, ALPHA, 10, random_start=False, targeted=targeted, loss=loss)
    x_adv = pgd(x, goal)
    assert torch.equal(x_adv, plain_pgd(net, x, goal, loss, targeted, 10))
    by_ce = PGD(net, EPS, ALPHA, 10, random_start=False, targeted=targeted)(x, goal)
    assert not torch.equal(x_adv, by_ce)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["cw", "dlr"])
def test_on_a_real_network(
    loss: str,
    targeted: bool,
    cifar10: tuple[Tensor, Tensor],
    checkpoint: Callable[[str], nn.Module],
) -> None:
    net, x, y = checkpoint("resnet4b"), cifar10[0][:64], cifar10[1][:64]
    goal = (y + 3) % 10 if targeted else y
    pgd = PGD(net, EPS, ALPHA, 10, random_start=False, targeted=targeted, loss=loss)
    assert torch.equal(pgd(x, goal), plain_pgd(net, x, goal, loss, targeted, 10))


def test_the_dlr_does_not_see_the_scale_of_the_logits(net: nn.Module, x: Tensor, y: Tensor) -> None:
    options = {"steps": 5, "random_start": False, "loss": "dlr"}
    assert torch.equal(PGD(lambda a: 2**14 * net(a), **options)(x, y), PGD(net, **options)(x, y))


@pytest.mark.parametrize("loss", ["cw", "dlr"])
@pytest.mark.parametrize("options", [{"restarts": 2}, {"early_stop": True}, {"engine": "fast"}])
def test_with_the_rest_of_the_engine(
    loss: str, options: dict[str, object], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    x_adv = PGD(net, 0.1, 0.02, 10, loss=loss, seed=0, **options)(x, y)
    assert (net(x_adv).argmax(1) != y).all()


@pytest.mark.parametrize("loss", ["cw", "dlr"])
def test_random_targets(loss: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    target = random_targets(net(x), y, target_draws(torch.tensor([7]), torch.arange(8)))
    options = {"eps": 0.1, "alpha": 0.02, "steps": 10, "loss": loss, "seed": 7}
    x_adv = PGD(net, targeted="random", **options)(x, y)
    assert torch.equal(x_adv, PGD(net, targeted=True, **options)(x, target))
    margin = net(x_adv).gather(1, target.view(-1, 1)) - net(x).gather(1, target.view(-1, 1))
    assert (margin > 0).all()


def test_a_dlr_that_has_won_does_not_warn(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Where the true class is third the loss is constant, 1, and its gradient 0."""
    pgd = PGD(net, 0.1, 0.02, 30, loss="dlr", seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x_adv = pgd(x, y)
    assert pgd.stats.zero > pgd.stats.total / 2
    assert (net(x_adv).argmax(1) != y).all()


@pytest.mark.parametrize(
    ("loss", "targeted", "classes", "message"),
    [
        ("dlr", False, 2, r"^loss: 'dlr' needs at least 3 classes, the model has 2"),
        ("dlr", True, 3, r"^loss: targeted 'dlr' needs at least 4 classes, the model has 3"),
    ],
)
def test_too_few_classes(
    loss: str, targeted: bool, classes: int, message: str, x: Tensor, y: Tensor
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    with pytest.raises(ValueError, match=message):
        PGD(net, loss=loss, targeted=targeted)(x, y * 0)


def test_a_loss_that_does_not_exist(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^loss: 'hinge', expected one of 'ce', 'cw', 'dlr'"):
        PGD(net, loss="hinge")
