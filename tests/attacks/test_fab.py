"""FAB-T finds the nearest image that fools, where that is known; and its projection solves its linear program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import FABT
from iaat_fast.attacks.fab import step_to_hyperplane
from tests.attacks.watched import Watched


@pytest.fixture
def linear() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double().eval()


def distances(linear: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Of a linear model's boundary in the L-infinity norm, where no pixel meets the box: margin over L1 norm."""
    weight, logits = linear[1].weight.detach(), linear(x).detach()
    ahead = logits.gather(1, y.view(-1, 1)) - logits
    norms = (weight[y].unsqueeze(1) - weight).abs().sum(2)
    return (ahead / norms).scatter(1, y.view(-1, 1), torch.inf).amin(1)


def linf(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).abs().amax(1)


@pytest.mark.slow
def test_a_linear_models_distance_is_found(linear: nn.Sequential) -> None:
    """Each step of the final search leaves a tenth of the distance that the one before it left."""
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double() / 2 + 0.25
    y = linear(x).argmax(1)
    exact = distances(linear, x, y)
    assert exact.max() < 0.2, "no pixel meets the box"
    # A logit is a sum of 192 products of size up to 1, each rounded by 1e-16: no attack sees the boundary any sharper.
    top = linear(x).topk(2, dim=1).values
    rounding = 192e-16 / (top[:, 0] - top[:, 1])
    first = 0.0053  # how far past the boundary the steps leave the nearest image, beta and eta being what they are
    for search_steps in (0, 1, 3, 12):
        x_adv = FABT(linear, None, 20, search_steps=search_steps)(x, y)
        assert (linear(x_adv).argmax(1) != y).all()
        over = linf(x_adv, x) / exact - 1
        assert (over > -rounding).all()
        assert (over < first / 10**search_steps + rounding).all()


def test_the_verdicts_of_a_linear_model_are_exact(linear: nn.Sequential) -> None:
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double() / 2 + 0.25
    y = linear(x).argmax(1)
    exact = distances(linear, x, y)
    eps = exact * (1 + 1e-6 * torch.tensor([1.0, -1.0]).repeat(16))
    fooled = linear(FABT(linear, 1.0, 20, search_steps=5)(x, y, eps=eps)).argmax(1) != y
    assert torch.equal(fooled, eps > exact)


def test_nearest_over_all_targets(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Without early stop every target is tried, and one more target never makes the nearest image farther."""
    net, x = net.double(), x.double()
    found = [linf(FABT(net, None, 20, n_target_classes=k)(x, y), x) for k in (1, 2, 9)]
    assert (found[1] <= found[0]).all()
    assert (found[2] <= found[1]).all()
    early = FABT(net, 1.0, 20)(x, y)
    assert (net(early).argmax(1) != y).all()
    assert (linf(early, x) >= found[2]).all()


@pytest.mark.slow
def test_early_stop_changes_no_verdict(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x = net.double(), x.double()
    nearest = linf(FABT(net, None, 20)(x, y), x)
    eps = float(nearest.median()) + 1e-9
    for early_stop in (True, False):
        x_adv = FABT(net, eps, 20, early_stop=early_stop)(x, y)
        fooled = net(x_adv).argmax(1) != y
        assert fooled[nearest <= eps].all()
        assert 4 <= fooled.sum() < 8


def test_who_falls_leaves_the_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    attack = FABT(net, 0.1, 20)
    attack(x, y)
    assert attack.stats.planned == 8 * 20 * 9
    assert attack.stats.gradients < attack.stats.planned / 4


def test_what_is_misclassified_stays_as_it_is(net: nn.Module, x: Tensor, y: Tensor) -> None:
    y = torch.where(torch.arange(8) < 4, y, (y + 1) % 10)
    x_adv = FABT(net, None, 10)(x, y)
    assert torch.equal(x_adv[4:], x[4:])
    assert (linf(x_adv, x)[:4] > 0).all()


def test_later_restarts_start_in_half_the_radius(net: nn.Module, x: Tensor, y: Tensor) -> None:
    watched = Watched(net)
    attack = FABT(watched, 0.001, 1, n_target_classes=1, search_steps=0, restarts=2, seed=0)
    attack(x, y)
    offsets = [linf(seen, x) for seen in watched.seen if len(seen) == 8]
    assert any(((o > 0) & (o <= 0.0005 + 1e-7)).all() for o in offsets)


def test_batch_statistics_keep_the_batch_whole(bn_net: nn.Module, x: Tensor) -> None:
    watched = Watched(bn_net)
    FABT(watched, 0.2, 5, bn="train", search_steps=0)(x, torch.arange(8))
    sizes = [len(seen) for seen in watched.seen]
    assert sizes.count(8) >= 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_target_classes": 0}, ValueError, r"^n_target_classes: 0, expected at least 1"),
        ({"search_steps": -1}, ValueError, r"^search_steps: -1, expected at least 0"),
        ({"alpha_max": 1.5}, ValueError, r"^alpha_max: 1\.5, expected a number in \[0, 1\]"),
        ({"beta": -0.1}, ValueError, r"^beta: -0\.1, expected a number in \[0, 1\]"),
        ({"eta": 0.9}, ValueError, r"^eta: 0\.9, expected a number >= 1"),
        ({"eps": "8/255"}, TypeError, r"^eps: '8/255', expected a float or a Tensor"),
        ({"lo": 1.0, "hi": 0.0}, ValueError, r"^lo, hi: 1\.0, 0\.0, expected lo <= hi"),
    ],
)
def test_bad_options(
    net: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FABT(net, **options)


def test_nan_logits_are_refused(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^logits: \[nan, .* in row 0, expected numbers"):
        FABT(lambda images: images.flatten(1) * torch.nan)(x, y)


def test_a_masked_gradient_is_warned_of(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def flat(images: Tensor) -> Tensor:
        return net(images.detach()) + 0 * images.flatten(1)[:, :10]

    with pytest.warns(RuntimeWarning, match="more than half of the gradient entries are 0"):
        x_adv = FABT(flat, 0.01, 3)(x, y)
    torch.testing.assert_close(x_adv, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_step_solves_the_linear_program(seed: int) -> None:
    """min t with -t <= d <= t, <w, d> = gap, lo <= x + d <= hi: by scipy, on small problems that meet the box."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    x, w = rng.random(7), rng.normal(size=7)
    w[rng.random(7) < 0.2] = 0
    farthest = np.where(w > 0, 1 - x, -x) @ w
    for share in (0.05, 0.5, 0.95):
        gap = share * farthest
        bounds = [(low, high) for low, high in zip(-x, 1 - x, strict=True)] + [(0, None)]
        both = np.vstack([np.c_[np.eye(7), -np.ones(7)], np.c_[-np.eye(7), -np.ones(7)]])
        solved = optimize.linprog(
            np.r_[np.zeros(7), 1], both, np.zeros(14), np.r_[w, 0][None], [gap], bounds
        )
        (step,) = step_to_hyperplane(
            *(torch.tensor(a[None]) for a in (x, w)), torch.tensor([gap]), 0.0, 1.0
        ).numpy()
        assert step @ w == pytest.approx(gap, abs=1e-12)
        assert (x + step >= -1e-12).all()
        assert (x + step <= 1 + 1e-12).all()
        assert abs(step).max() == pytest.approx(solved.fun, abs=1e-9)
        assert (step[w == 0] == 0).all()


def test_a_step_from_the_other_side_and_one_too_far() -> None:
    x, w = torch.tensor([[0.5, 0.5], [0.5, 0.9]]), torch.tensor([[1.0, -2.0], [1.0, 1.0]])
    step = step_to_hyperplane(x, w, torch.tensor([-0.3, 5.0]), 0.0, 1.0)
    torch.testing.assert_close(step, torch.tensor([[-0.1, 0.1], [0.5, 0.1]]))
    nowhere = step_to_hyperplane(x, torch.zeros_like(w), torch.tensor([0.3, 0.0]), 0.0, 1.0)
    assert torch.equal(nowhere, torch.zeros_like(x))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_verdicts_are_the_live_models(precision: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Every image that an attack by a copy in half precision has found fools the model itself."""
    attack = FABT(net, None, 15, precision=precision)
    x_adv = attack(x, y)
    assert "copy" in attack.network.gradient_source
    assert (net(x_adv).argmax(1) != y).all()
    exact = linf(FABT(net, None, 15)(x, y), x)
    assert (linf(x_adv, x) < 1.1 * exact).all()
