"""Radii, step sizes, candidates and noise belong to the sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import FGSM, PGD, scaled_step

RADII = torch.tensor([0.0, 1, 2, 4, 8, 16, 32, 64]) / 255


def test_a_radius_per_sample_is_a_run_per_radius(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, alpha=2 / 255, steps=5, seed=3)
    together = pgd(x, y, eps=RADII)
    for i, eps in enumerate(RADII.tolist()):
        assert torch.equal(together[i], pgd(x, y, eps=eps)[i])
    assert torch.equal(together[0], x[0])


def test_a_step_size_per_sample_is_a_run_per_step_size(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    pgd = PGD(net, eps=8 / 255, steps=5, seed=3)
    alpha = torch.linspace(0.5, 4, 8) / 255
    together = pgd(x, y, alpha=alpha)
    for i, step in enumerate(alpha.tolist()):
        assert torch.equal(together[i], pgd(x, y, alpha=step)[i])


def test_a_step_size_may_be_a_function_of_the_radii(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """The released code's max(eps / (0.5 * steps), 2/255)."""
    alpha = scaled_step(5)
    torch.testing.assert_close(
        alpha(torch.tensor([0.0, 4, 5, 10]) / 255), torch.tensor([2.0, 2, 2, 4]) / 255
    )
    by_function = PGD(net, RADII, alpha, steps=5, seed=3)(x, y)
    assert torch.equal(by_function, PGD(net, RADII, alpha(RADII), steps=5, seed=3)(x, y))


def test_defaults_may_be_given_to_the_constructor_or_to_the_call(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    expected = PGD(net, eps=RADII, alpha=RADII / 4 + 1e-3, steps=3, seed=3)(x, y)
    pgd = PGD(net, steps=3)
    assert torch.equal(pgd(x, y, eps=RADII, alpha=RADII / 4 + 1e-3, seed=3), expected)


def test_k_candidates_are_k_calls(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """In float64, because a convolution may round differently in a batch of another size."""
    net, x = net.double(), x.double()
    eps = torch.stack([RADII + 0.02, RADII, (RADII - 0.02).clamp(min=0)])
    pgd = PGD(net, alpha=2 / 255, steps=5, seed=3)
    together = pgd(x, y, eps=eps.flatten())
    assert together.shape == (24, 3, 8, 8)
    for k in range(3):
        assert torch.equal(together[8 * k : 8 * k + 8], pgd(x, y, eps=eps[k], candidate=k))


def test_candidates_without_a_random_start_and_with_one_start_for_all(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    net, x = net.double(), x.double()
    eps = torch.full((16,), 0.03)
    eps[8:] = 0.06
    pgd = PGD(net, alpha=2 / 255, steps=3, random_start=False)
    assert torch.equal(pgd(x, y, eps=eps)[8:], pgd(x, y, eps=0.06))
    start = (x + 0.01).clamp(0, 1)
    assert torch.equal(pgd(x, y, eps=eps, start=start)[:8], pgd(x, y, eps=eps[:8], start=start))
    both = torch.cat([start, x])
    assert torch.equal(pgd(x, y, eps=eps, start=both)[8:], pgd(x, y, eps=0.06, start=x))


def test_a_step_size_per_sample_holds_for_all_its_candidates(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    alpha = torch.linspace(0.5, 4, 8) / 255
    pgd = PGD(net, eps=torch.full((16,), 0.03), steps=3, seed=0)
    assert torch.equal(pgd(x, y, alpha=alpha), pgd(x, y, alpha=alpha.repeat(2)))


def test_the_attack_follows_the_sample_through_any_split_and_order(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    net, x = net.double(), x.double()
    pgd = PGD(net, alpha=2 / 255, steps=5, restarts=2, seed=3)
    index = torch.arange(8) * 1000
    whole = pgd(x, y, index=index)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    assert torch.equal(pgd(x[order], y[order], index=index[order]), whole[order])
    parts = [pgd(x[i], y[i], index=index[i]) for i in (slice(0, 1), slice(1, 6), slice(6, 8))]
    assert torch.equal(torch.cat(parts), whole)


def test_seeds(net: nn.Module, x: Tensor, y: Tensor) -> None:
    fixed, drawn = PGD(net, steps=2, seed=1), PGD(net, steps=2)
    assert torch.equal(fixed(x, y), fixed(x, y))
    assert torch.equal(fixed(x, y), drawn(x, y, seed=1))
    assert not torch.equal(fixed(x, y), fixed(x, y, seed=2))
    assert not torch.equal(drawn(x, y), drawn(x, y))
    torch.manual_seed(5)
    first = drawn(x, y)
    torch.manual_seed(5)
    assert torch.equal(first, drawn(x, y))


def test_the_random_start_is_uniform_in_ball_and_box(net: nn.Module, x: Tensor, y: Tensor) -> None:
    start = PGD(net, eps=0.3, steps=0, seed=0)(x, y)
    assert ((start >= 0) & (start <= 1)).all()
    assert ((start - x).abs() <= 0.3 + 1e-6).all()
    assert abs(float((start - x)[(x > 0.3) & (x < 0.7)].mean())) < 0.03
    free = PGD(net, eps=0.3, steps=0, seed=0, clamp_start=False)(x, y)
    assert torch.equal(free.clamp(0, 1), start)
    assert (free < 0).any()


@pytest.mark.parametrize("eps", [8 / 255, 0.5, 1.0])
def test_the_result_is_in_ball_and_box(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
    x_adv = PGD(net, eps=eps, alpha=eps / 3, steps=4, restarts=2, seed=0)(x, y)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert ((x_adv - x).abs() <= eps + 1e-6).all()


def test_another_box(net: nn.Module, x: Tensor, y: Tensor) -> None:
    wide = PGD(net, eps=2.0, alpha=1.0, steps=3, lo=-1.0, hi=2.0, seed=0)(2 * x - 0.5, y)
    assert wide.min() == -1.0
    assert wide.max() == 2.0


def test_fgsm_takes_a_radius_per_sample(net: nn.Module, x: Tensor, y: Tensor) -> None:
    together = FGSM(net, RADII)(x, y)
    for i, eps in enumerate(RADII.tolist()):
        assert torch.equal(together[i], FGSM(net, eps)(x, y)[i])


def test_no_steps_from_x_is_x(net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert torch.equal(PGD(net, steps=0, random_start=False)(x, y), x)
