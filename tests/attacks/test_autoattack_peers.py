"""Square and FAB-T do what AutoAttack's released code does, where chance is taken out of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import APGD, APGDT, FABT, Square
from iaat_fast.attacks.attack import Attack
from iaat_fast.data import Split
from iaat_fast.evaluate import autoattack
from tests.attacks.watched import Watched

EPS = 1 / 64


@pytest.fixture
def images() -> Tensor:
    return torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture
def everything_in_float64(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The peer turns images into float32, in which a hundred steps over the boundary and back diverge."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("everything_in_float64")
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_fab_takes_the_same_steps(steps: int, rank: int, net: nn.Module, images: Tensor) -> None:
    fab = pytest.importorskip("pyautoattack.fab_pt")
    net = net.double()
    y = net(images).argmax(1)
    theirs = fab.FABAttack_PT(net, n_iter=steps, eps=EPS, targeted=True, device="cpu")
    theirs.target_class = rank + 1
    expected = theirs.attack_single_run(images, y, is_targeted=True)
    towards = net(images).argsort(1, descending=True)[:, rank]
    attack = FABT(net, None, steps, n_target_classes=1, search_steps=0)
    x_adv = towards_only(attack, images, y, towards)
    found = (expected != images).flatten(1).any(1)
    assert found.sum() >= (12 if steps > 1 else 1)
    assert torch.equal(net(x_adv).argmax(1) != y, found)
    # Their projections divide by sums in another order: 1e-16 each, which the steps carry on.
    torch.testing.assert_close(x_adv[found], expected[found], rtol=0, atol=1e-9)


def towards_only(attack: FABT, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The attack towards one class per sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "iaat_fast.attacks.objective.likely_targets", lambda logits, y, most: target.view(-1, 1)
        )
        return attack(x, y)


def test_square_keeps_the_same_squares(net: nn.Module, images: Tensor) -> None:
    """Their code, handed the stripes and squares that ours draws for a sample, ends with the same image."""
    square = pytest.importorskip("pyautoattack.square")
    net, queries = net.double(), 60
    y = net(images).argmax(1)
    standing = 0
    for number in range(6):
        x, label, index = images[[number]], y[[number]], torch.tensor([number])
        watched = Watched(net)
        with pytest.MonkeyPatch.context() as patch:
            proposals = Proposals(patch)
            x_adv = Square(watched, EPS, queries, seed=5)(x, label, index=index)
        theirs = square.SquareAttack(
            net, n_queries=queries, eps=EPS, device="cpu", resc_schedule=False
        )
        proposals.replay(theirs, watched.seen[0] - x)
        theirs.init_hyperparam(x)
        _, expected = theirs.attack_single_run(x, label)
        torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
        standing += int(net(x_adv).argmax(1) == label)
    assert standing > 0


class Proposals:
    """Records what our search draws, as (top, left, signs) per query, and hands it to theirs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drawn: list[tuple[int, int, Tensor]] = []
        draw = Square._draw_ahead

        def draw_ahead(attack: Square, call: Any, state: Any, canvas: Any, query: int) -> None:
            draw(attack, call, state, canvas, query)
            for place, corner in zip(state.place[0].tolist(), state.corner[0], strict=True):
                # A square of x + eps is the first of the corners, with an offset of 0.
                signs = torch.where(corner == 0, 1.0, -1.0).double().view(-1, 1, 1)
                self.drawn.append((*divmod(place, canvas.width), signs))

        patch.setattr(Square, "_draw_ahead", draw_ahead)

    def replay(self, theirs: Any, start: Tensor) -> None:
        places = iter([place for top, left, _ in self.drawn for place in (top, left)])
        choices = iter([start[:, :, :1].sign(), *(signs for _, _, signs in self.drawn)])
        theirs.random_int = lambda low, high: next(places)
        theirs.random_choice = lambda shape: next(choices)


@pytest.fixture
def some(cifar10: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return cifar10[0][:20], cifar10[1][:20]


def test_fab_finds_the_same_distances_on_a_real_network(
    some: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """In float32 the paths part after some steps; the nearest images stay as near."""
    fab = pytest.importorskip("pyautoattack.fab_pt")
    net, (x, y) = checkpoint("resnet4b"), some
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    theirs = fab.FABAttack_PT(net, n_iter=20, eps=EPS, targeted=True, device="cpu")
    theirs.target_class = 2
    expected = (theirs.attack_single_run(x, y, is_targeted=True) - x).flatten(1).abs().amax(1)
    found = (
        (FABT(net, None, 20, n_target_classes=1, search_steps=0)(x, y) - x).flatten(1).abs().amax(1)
    )
    ratio = found / expected
    assert (ratio - 1).abs().median() < 1e-3
    assert ((ratio - 1).abs() < 0.02).all()


def test_the_same_samples_stand_on_a_real_network(
    some: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """The whole of both, with small budgets. Their chance differs, so samples at the edge may.

    FAB-T starts at x in both: a sample falls in both where it finds the boundary clearly within the radius (the test
    above leaves its distances 2 %). Beyond the radius by 10 % as FAB-T finds it, no start and no square should do
    better; between the two chance may decide.
    """
    peer = pytest.importorskip("pyautoattack.autoattack")
    net, (x, y), eps = checkpoint("resnet4b"), some, 4 / 255
    attacks: dict[str, Attack] = {
        "apgd-ce": APGD(net, steps=10),
        "apgd-t": APGDT(net, steps=10, n_target_classes=3),
        "fab-t": FABT(net, steps=10, n_target_classes=3),
        "square": Square(net, n_queries=50),
    }
    split = Split(x.mul(255).round().byte().permute(0, 2, 3, 1), y)
    ours = autoattack(net, split, eps=eps, attacks=attacks)

    theirs = peer.AutoAttack(net, eps=eps, seed=0, version="standard")
    theirs.apgd.n_iter = theirs.apgd_targeted.n_iter = theirs.fab.n_iter = 10
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 3
    theirs.square.n_queries = 50
    x_adv, _ = theirs.run_standard_evaluation(x, y, batch_size=len(x))
    standing = net(x_adv).argmax(1) == y

    nearest = (FABT(net, None, 10, n_target_classes=3)(x, y) - x).flatten(1).abs().amax(1) / eps
    assert not standing[nearest < 0.98].any()
    assert not ours.correct[nearest < 0.98].any()
    assert standing[nearest > 1.1].all()
    assert ours.correct[nearest > 1.1].all()
    assert (nearest > 1.1).sum() > 5
    assert ((nearest > 0) & (nearest < 0.98)).sum() > 5
