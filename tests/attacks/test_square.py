"""Square's search: what it tries, what it keeps, and that its draws follow the sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import Square, losses
from iaat_fast.attacks.square import _AHEAD
from tests.attacks.watched import Watched

EPS = 0.03


def margin(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return losses.value("cw", net(x), y, targeted=False)


def test_it_starts_from_vertical_stripes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x = 0.2 + 0.6 * x
    noise = Square(net, EPS, 0, seed=1)(x, y) - x
    torch.testing.assert_close(noise.abs(), torch.full_like(x, EPS))
    assert torch.equal(noise.sign(), noise[:, :, :1].sign().expand_as(noise))
    assert 0.3 < (noise[:, :, 0] > 0).float().mean() < 0.7
    assert len({tuple(row.sign().flatten().tolist()) for row in noise[:, :, 0]}) == 8


def test_a_query_changes_one_square_per_sample(net: nn.Module, x: Tensor) -> None:
    """All proposals are watched; no sample ever falls, because its class wins everywhere."""
    x = 0.2 + 0.6 * x
    winning = nn.Sequential(net, Raised(0)).eval()
    watched = Watched(winning)
    attack = Square(watched, EPS, 2 * _AHEAD + 3, seed=1)
    attack(x, torch.zeros(8, dtype=torch.int64))
    best = watched.seen[0]
    places = set()
    for query, tried in enumerate(watched.seen[1:], start=1):
        side = attack.side(query, 8, 8)
        torch.testing.assert_close((tried - x).abs(), torch.full_like(x, EPS))
        changed = (tried - best).abs() > EPS
        for sample in changed:
            for channel in sample:
                rows, columns = channel.any(1).nonzero()[:, 0], channel.any(0).nonzero()[:, 0]
                if len(rows):
                    assert rows.max() - rows.min() < side
                    assert columns.max() - columns.min() < side
        places |= {tuple(sample.nonzero().tolist()[0]) for sample in changed if sample.any()}
        better = margin(winning, tried, y := torch.zeros(8, dtype=torch.int64)) > margin(
            winning, best, y
        )
        best = torch.where(better.view(-1, 1, 1, 1), tried, best)
    assert len(watched.seen) == 2 * _AHEAD + 4
    assert {row for _, row, _ in places} == set(range(8)), "the last row can be touched too"


class Raised(nn.Module):
    """Raises one class' logit beyond reach."""

    def __init__(self, winner: int) -> None:
        super().__init__()
        self.winner = winner

    def forward(self, logits: Tensor) -> Tensor:
        return logits + 100.0 * (torch.arange(logits.shape[1]) == self.winner)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_loss_never_gets_worse(targeted: bool, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """A run of k queries is the beginning of a longer one."""
    goal = (y + 1) % 10 if targeted else y
    runs = [Square(net, 0.01, k, targeted=targeted, seed=2)(x, goal) for k in (0, 1, 5, 20, 80)]
    sign = -1 if targeted else 1
    values = torch.stack([sign * margin(net, x_adv, goal) for x_adv in runs])
    assert (values.diff(dim=0) >= -1e-6).all()
    assert (values[-1] > values[0]).all()


def test_the_sides_are_those_of_the_schedule(net: nn.Module) -> None:
    attack = Square(net, EPS, 5000)
    sides = {query: attack.side(query, 32, 32) for query in (1, 11, 12, 52, 202, 2002, 4002, 5000)}
    expected = {1: 29, 11: 29, 12: 20, 52: 14, 202: 10, 2002: 4, 4002: 3, 5000: 3}
    assert sides == expected
    assert Square(net, EPS, 100, rescale_schedule=True).side(100, 32, 32) == 1
    assert attack.side(1, 32, 8) == 8, "no wider than the image"


def test_it_needs_no_gradient(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def masked(images: Tensor) -> Tensor:
        return net(images.detach())

    x_adv = Square(masked, 0.1, 200, seed=0)(x, y)
    assert (net(x_adv).argmax(1) != y).sum() >= 6


def test_who_falls_leaves_the_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    watched = Watched(net)
    attack = Square(watched, 0.05, 300, seed=0)
    x_adv = attack(x, y)
    fell = int((net(x_adv).argmax(1) != y).sum())
    assert fell > 0
    assert sum(map(len, watched.seen)) < 301 * 8 * (1 - fell / 16)
    assert attack.stats.gradients == attack.stats.planned == 0


def test_the_squares_follow_the_sample(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Numbered as in the whole, each half gets the whole's images; in float64, where no verdict is near an edge."""
    net, x = net.double(), x.double()
    attack = Square(net, EPS, 100, seed=3)
    whole = attack(x, y)
    index = torch.arange(8)
    for half in (slice(0, 4), slice(4, 8)):
        assert torch.equal(attack(x[half], y[half], index=index[half]), whole[half])
    assert not torch.equal(attack(x[4:], y[4:]), whole[4:])
    assert not torch.equal(attack(x, y, restart=1), whole)
    assert not torch.equal(attack(x, y, seed=4), whole)


def test_the_memory_format_changes_no_square(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """In float64, where no verdict is near an edge; of 5 x 8 pixels, so that rows and columns cannot be confused."""
    net, x = nn.Sequential(nn.Upsample((8, 8)), net).double(), x[:, :, :5].double()
    attack = Square(net, EPS, 100, seed=3)
    x_adv = attack(x.contiguous(memory_format=torch.channels_last), y)
    assert torch.equal(x_adv, attack(x.contiguous(), y))


def test_a_random_target_is_approached(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x_adv = Square(net, 0.1, 200, targeted="random", seed=0)(x, y)
    assert (net(x_adv).argmax(1) != y).sum() >= 4


def test_a_start_is_brought_into_the_ball(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x_adv = Square(net, EPS, 0)(x, y, start=torch.zeros_like(x))
    torch.testing.assert_close(x_adv, (x - EPS).clamp(0, 1))


def test_batch_statistics_keep_the_batch_whole(bn_net: nn.Module, x: Tensor) -> None:
    watched = Watched(bn_net)
    y = torch.arange(8)
    x_adv = Square(watched, 0.2, 20, bn="train", seed=0)(x, y)
    assert {len(seen) for seen in watched.seen} == {8}
    assert ((x_adv - x).abs() <= 0.2 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_queries": -1}, ValueError, r"^n_queries: -1, expected at least 0"),
        ({"n_queries": 1.0}, TypeError, r"^n_queries: 1\.0, expected an int"),
        ({"p_init": 0.0}, ValueError, r"^p_init: 0\.0, expected a number in \(0, 1\]"),
        ({"p_init": 1.5}, ValueError, r"^p_init: 1\.5, expected a number in \(0, 1\]"),
        ({"eps": -0.1}, ValueError, r"^eps: -0\.1, expected a number >= 0"),
    ],
)
def test_bad_options(
    net: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Square(net, **options)


def test_images_without_rows_and_columns(net: nn.Module, x: Tensor, y: Tensor) -> None:
    flat = nn.Sequential(nn.Unflatten(1, (3, 8, 8)), net)
    with pytest.raises(ValueError, match=r"^x: shape \(8, 192\), expected \[N, C, H, W\]"):
        Square(flat, EPS, 1)(x.flatten(1), y)


def test_nan_logits_are_refused(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^logits: \[nan, .* in row 0, expected numbers"):
        Square(lambda images: images.flatten(1) * torch.nan, EPS, 1)(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_verdicts_are_the_live_models(precision: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """The search looks at a copy in half precision; who leaves it has fooled the model itself."""
    watched = Watched(net)
    attack = Square(watched, 0.1, 200, precision=precision, engine="fast", seed=0)
    x_adv = attack(x, y)
    assert "copy" in attack.network.gradient_source
    assert (net(x_adv).argmax(1) != y).sum() >= 6
