"""APGD and APGDT: schedules, what is kept, who leaves, saturation, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import APGD, APGDT
from iaat_fast.attacks.apgd import checkpoints

APGDS = pytest.mark.parametrize("attack", [APGD, APGDT])


@pytest.fixture
def many() -> Tensor:
    return torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()


def fooled(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    return net(x_adv).argmax(1) != y


def test_at_100_steps_the_checkpoints_are_the_papers() -> None:
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06); w_j = ceil(100 p_j)."""
    p = [0, 22]  # in hundredths, which are exact
    while p[-1] <= 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    expected = {math.ceil(b): math.ceil(b) - math.ceil(a) for a, b in itertools.pairwise(p)}
    assert checkpoints(100) == {step: n for step, n in expected.items() if step <= 100}
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 1000])
def test_periods_add_up_to_their_checkpoints(steps: int) -> None:
    found = checkpoints(steps)
    assert [sum(list(found.values())[: i + 1]) for i in range(len(found))] == list(found)
    assert max(found) <= steps
    assert checkpoints(0) == {}


@APGDS
def test_early_stop_changes_no_verdict_and_saves_gradients(
    attack: Any, net: nn.Module, many: Tensor
) -> None:
    net = net.double()
    y = net(many).argmax(1)
    soon = attack(net, 0.012, 15, seed=0)
    late = attack(net, 0.012, 15, seed=0, early_stop=False)
    by_soon, by_late = soon(many, y), late(many, y)
    verdicts = fooled(net, by_soon, y)
    assert torch.equal(verdicts, fooled(net, by_late, y))
    assert 0 < verdicts.sum() < len(y)
    assert soon.stats.gradients < late.stats.gradients <= late.stats.planned
    assert not torch.equal(by_soon[verdicts], by_late[verdicts])
    standing = ~verdicts
    assert torch.equal(by_soon[standing], by_late[standing])


@pytest.mark.parametrize("loss", ["ce", "cw", "dlr"])
def test_a_sample_leaves_with_its_first_iterate_that_fools(
    loss: str, net: nn.Module, many: Tensor
) -> None:
    """The first 5 iterates of a run of 40 steps are those of runs of 1, 2 ... 5: no checkpoint is among them."""
    net = net.double()
    y = net(many).argmax(1)
    start = (many + 0.002).clamp(0, 1)
    options = {"eps": 0.02, "loss": loss, "random_start": False}
    expected = start.clone()
    for steps in (5, 4, 3, 2, 1):
        iterate = APGD(net, steps=steps, early_stop=False, **options)(many, y, start=start)
        found = fooled(net, iterate, y)
        expected[found] = iterate[found]
    x_adv = APGD(net, steps=5, **options)(many, y, start=start)
    found = fooled(net, x_adv, y)
    assert torch.equal(x_adv[found], expected[found])
    assert 0 < found.sum() < len(y)


def test_a_sample_never_fooled_keeps_its_largest_loss(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        logits = net(images)
        seen.append(F.cross_entropy(logits.detach(), y, reduction="none"))
        return logits

    x_adv = APGD(watched, 0.004, 20, seed=0, early_stop=False)(many, y)
    standing = ~fooled(net, x_adv, y)
    assert standing.sum() > 10
    best = torch.stack(seen).amax(0)
    loss = F.cross_entropy(net(x_adv), y, reduction="none")
    torch.testing.assert_close(loss[standing], best[standing])
    assert (torch.stack(seen)[-1] < best)[standing].any(), "the last iterate is not always the best"


@APGDS
def test_restarts_are_never_weaker(attack: Any, net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    once = fooled(net, attack(net, 0.008, 5, seed=0)(many, y), y)
    more = fooled(net, attack(net, 0.008, 5, seed=0, restarts=4)(many, y), y)
    assert (once <= more).all()
    assert once.sum() < len(y)


@pytest.mark.parametrize("loss", ["cw", "dlr"])
def test_the_scale_of_the_logits_changes_nothing(
    loss: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    options = {"eps": 0.02, "steps": 20, "loss": loss, "seed": 0}
    scaled = APGD(lambda images: 2**13 * net(images), **options)(x, y)
    assert torch.equal(scaled, APGD(net, **options)(x, y))


@pytest.mark.filterwarnings("ignore:.* gradient entries are 0:RuntimeWarning")
def test_saturated_cross_entropy_is_climbed(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Logits times 10**4: the cross-entropy of confident images is 0 in float32, and so is its gradient."""

    def confident(images: Tensor) -> Tensor:
        return 1e4 * net(images)

    gaps = confident(x).topk(2).values
    keep = gaps[:, 0] - gaps[:, 1] > 110  # below it the plain gradient may not be 0
    assert keep.sum() >= 3
    x, y = x[keep], y[keep]
    options = {"eps": 0.05, "steps": 20, "random_start": False}
    assert not fooled(net, APGD(confident, engine="exact", **options)(x, y), y).any()
    assert fooled(net, APGD(confident, **options)(x, y), y).all()


@APGDS
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verdicts_of_a_fast_engine_are_the_live_models(
    attack: Any, precision: str, net: nn.Module, many: Tensor
) -> None:
    x = many.float()
    y = net(x).argmax(1)
    fast = attack(net, 0.012, 10, engine="fast", precision=precision, seed=0)
    exact = attack(net, 0.012, 10, seed=0)
    difference = fooled(net, fast(x, y), y) != fooled(net, exact(x, y), y)
    assert difference.sum() <= (4 if precision == "bf16" else 1)
    assert fooled(net, fast(x, y), y).any()


def test_targeted_apgd_reaches_its_target(net: nn.Module, x: Tensor, y: Tensor) -> None:
    target = (y + 1) % 10
    for loss in ("ce", "cw", "dlr"):
        x_adv = APGD(net, 0.3, 40, loss=loss, targeted=True, seed=0)(x, target)
        assert (net(x_adv).argmax(1) == target).all()


def test_apgdt_goes_for_the_likely_classes_first(net: nn.Module, many: Tensor) -> None:
    """With one target, what it does is APGD towards the runner-up."""
    net = net.double()
    y = net(many).argmax(1)
    options = {"eps": 0.01, "steps": 10, "random_start": False, "early_stop": False, "loss": "ce"}
    runner_up = net(many).topk(2).indices[:, 1]
    one = APGDT(net, n_target_classes=1, **options)(many, y)
    by_hand = APGD(net, targeted=True, **options)(many, runner_up)
    standing = ~fooled(net, one, y) & (net(by_hand).argmax(1) != runner_up)
    assert standing.sum() > 10
    assert torch.equal(one[standing], by_hand[standing])


def test_more_target_classes_are_never_weaker(net: nn.Module, many: Tensor) -> None:
    net = net.double()
    y = net(many).argmax(1)
    verdicts, planned = [], []
    for n in (1, 3, 9, 50):
        attack = APGDT(net, 0.01, 5, n_target_classes=n, seed=0)
        verdicts.append(fooled(net, attack(many, y), y))
        planned.append(attack.stats.planned)
    assert (verdicts[0] <= verdicts[1]).all()
    assert (verdicts[1] <= verdicts[2]).all()
    assert torch.equal(verdicts[2], verdicts[3]), "there are only 9 wrong classes"
    assert planned == [48 * 5 * n for n in (1, 3, 9, 9)]


def test_every_target_and_restart_has_a_start_of_its_own(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Tensor:
        seen.append(images.detach().clone())
        return net(images)

    APGDT(watched, 1e-4, 0, n_target_classes=3, restarts=2, seed=0)(x, y)
    starts = torch.stack(seen[1:]).unique(dim=0)  # the first images are x
    assert len(starts) == 6


@APGDS
def test_a_misclassified_sample_counts_as_fooled(
    attack: Any, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    wrong = (y + 1) % 10
    x_adv = attack(net, 1e-4, 3, seed=0)(x, wrong)
    assert fooled(net, x_adv, wrong).all()


def test_step_zero_is_the_start(net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert torch.equal(APGD(net, steps=0, random_start=False)(x, y), x)


@pytest.mark.parametrize(
    ("attack", "options", "error", "message"),
    [
        (APGD, {"rho": 1.5}, ValueError, r"^rho: 1\.5, expected a number in \[0, 1\]"),
        (APGD, {"rho": "x"}, TypeError, r"^rho: 'x', expected a number in"),
        (APGD, {"loss": "mse"}, ValueError, r"^loss: 'mse', expected one of 'ce'"),
        (APGD, {"steps": -1}, ValueError, r"^steps: -1, expected at least 0"),
        (APGD, {"alpha": 0.1}, TypeError, "alpha"),
        (APGDT, {"n_target_classes": 0}, ValueError, r"^n_target_classes: 0, expected at least 1"),
        (APGDT, {"n_target_classes": 2.0}, TypeError, r"^n_target_classes: 2\.0, expected an int"),
        (APGDT, {"targeted": "likely"}, ValueError, "targeted"),
    ],
)
def test_bad_arguments(
    attack: Any, options: dict[str, Any], error: type[Exception], message: str, net: nn.Module
) -> None:
    with pytest.raises(error, match=message):
        attack(net, **options)


@APGDS
def test_bad_calls(attack: Any, net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(TypeError, match=r"^alpha: given, but APGDT? finds its own step sizes"):
        attack(net, steps=2)(x, y, alpha=0.1)
    with pytest.raises(ValueError, match=r"^y: 10, expected a class in 0 \.\.\. 9"):
        attack(net, steps=2)(x, y * 0 + 10)


def test_apgdt_needs_four_classes(x: Tensor, y: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match=r"^loss: targeted 'dlr' needs at least 4 classes"):
        APGDT(net, steps=2)(x, y * 0)
    APGDT(net, steps=2, loss="cw")(x, y * 0)
