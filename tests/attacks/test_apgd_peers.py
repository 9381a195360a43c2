"""APGD and APGDT are those of torchattacks and of AutoAttack's released code.

From the same start, in float64: the same iterates. On a real network in float32: the same verdict for every sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import APGD, APGDT
from tests.attacks.watched import Watched

EPS = 1 / 64  # what a float32 holds: the peers keep step sizes in one


def by_torchattacks(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, loss: str, target: int | None
) -> Any:
    """A peer's attack object, ready for a single run; `target` is the rank of the class it goes for."""
    torchattacks = pytest.importorskip("torchattacks")
    if target is None:
        return torchattacks.APGD(net, eps=eps, steps=steps, loss=loss)
    attack = torchattacks.APGDT(net, eps=eps, steps=steps, n_classes=10)
    attack.target_class = target + 1
    return attack


def by_autoattack(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, loss: str, target: int | None
) -> Any:
    base = pytest.importorskip("pyautoattack.autopgd_base")
    if target is None:
        attack = base.APGDAttack(net, n_iter=steps, eps=eps, loss=loss, device="cpu")
    else:
        attack = base.APGDAttack_targeted(net, n_iter=steps, eps=eps, device="cpu")
        attack.y_target = net(x).sort(dim=1)[1][:, -target - 1]
    attack.init_hyperparam(x)
    return attack


peers = pytest.mark.parametrize("peer", [by_torchattacks, by_autoattack])


@contextlib.contextmanager
def float64_everywhere() -> Iterator[None]:
    """The peers keep losses in torch's default type, in which near ones may tie."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def assert_the_same_images(
    peer: Any, attack: Any, net: nn.Module, x: Tensor, y: Tensor, loss: str, steps: int, rank: Any
) -> None:
    watched = Watched(net).eval()
    torch.manual_seed(0)
    with float64_everywhere():
        theirs = peer(watched, x, y, EPS, steps, loss, rank)
        watched.seen.clear()
        best, standing, _, adversarial = theirs.attack_single_run(x, y)
    start = next(seen for seen in watched.seen if not torch.equal(seen, x))
    expected = torch.where(standing.bool().view(-1, 1, 1, 1), best, adversarial)
    assert 5 < standing.sum() < 64, "some samples fall, some stand"
    x_adv = attack(x, y, start=start)
    # One rounding of the images is 1e-16; over 100 steps a gradient entry that it turns has moved 1e-12.
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-10)
    assert (x_adv - x).abs().max() > 0.99 * EPS


@peers
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [5, 20, 33, 100])
def test_the_same_iterates(
    peer: Any, loss: str, steps: int, net: nn.Module, images: Tensor
) -> None:
    net = net.double()
    y = net(images).argmax(1)
    ours = APGD(net, EPS, steps, loss=loss, random_start=False, early_stop=False)
    assert_the_same_images(peer, ours, net, images, y, loss, steps, None)


@pytest.mark.parametrize("steps", [5, 20])
def test_the_same_iterates_from_a_start_that_is_hard_to_better(
    steps: int, net: nn.Module, images: Tensor
) -> None:
    """The best loss does not rise before the first checkpoint, which alone does not halve a step there."""
    net = net.double()
    y = net(images).argmax(1)
    start = APGD(net, EPS, 100, seed=0, early_stop=False)(images, y)
    with float64_everywhere():
        theirs = by_autoattack(net, images, y, EPS, steps, "ce", None)
        best, standing, _, adversarial = theirs.attack_single_run(images, y, x_init=start)
    expected = torch.where(standing.bool().view(-1, 1, 1, 1), best, adversarial)
    x_adv = APGD(net, EPS, steps, random_start=False, early_stop=False)(images, y, start=start)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-10)


@peers
@pytest.mark.parametrize("steps", [5, 20, 100])
def test_the_same_iterates_towards_the_runner_up(
    peer: Any, steps: int, net: nn.Module, images: Tensor
) -> None:
    net = net.double()
    y = net(images).argmax(1)
    options = {"n_target_classes": 1, "random_start": False, "early_stop": False}
    assert_the_same_images(peer, APGDT(net, EPS, steps, **options), net, images, y, "", steps, 1)


def corner(*shape: Any, **options: Any) -> Tensor:
    """In place of torch.rand: the peers' starts become x + eps, for a batch of any size."""
    return torch.ones(*shape, **options)


def in_the_corner(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> dict[str, Tensor]:
    """The results of the peers' whole attacks from x + eps."""
    torchattacks = pytest.importorskip("torchattacks")
    base = pytest.importorskip("pyautoattack.autopgd_base")
    eps, steps, targets = options["eps"], options["steps"], options.get("targets")
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", corner)
        if targets:
            theirs = base.APGDAttack_targeted(
                net, n_iter=steps, eps=eps, n_target_classes=targets, device="cpu"
            )
            results["AutoAttack"] = theirs.perturb(x, y)
            others = torchattacks.APGDT(net, eps=eps, steps=steps, n_classes=targets + 1)
        else:
            loss = options["loss"]
            theirs = base.APGDAttack(net, n_iter=steps, eps=eps, loss=loss, device="cpu")
            results["AutoAttack"] = theirs.perturb(x, y)
            others = torchattacks.APGD(net, eps=eps, steps=steps, loss=loss)
        if options.get("both", True):
            results["torchattacks"] = others(x, y)
    return results


def assert_the_same_verdicts(
    net: nn.Module, x: Tensor, y: Tensor, attack: Any, **options: Any
) -> None:
    def standing(images: Tensor) -> Tensor:
        with torch.no_grad():
            return net(images).argmax(1) == y

    x_adv = attack(x, y, start=(x + options["eps"]).clamp(0, 1))
    for name, images in in_the_corner(net, x, y, **options).items():
        assert torch.equal(standing(x_adv), standing(images)), name
    assert 0 < standing(x_adv).sum() < standing(x).sum() - len(x) // 10


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_same_verdicts_on_a_real_network(
    loss: str, cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    net, x, y = checkpoint("resnet4b"), cifar10[0][:24], cifar10[1][:24]
    ours = APGD(net, 4 / 255, 10, loss=loss, random_start=False)
    assert_the_same_verdicts(net, x, y, ours, eps=4 / 255, steps=10, loss=loss)


@pytest.mark.slow
def test_a_confident_network_falls_at_least_as_often(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """The plain engine gives AutoAttack's verdicts; the saturation-proof one fools those samples, and may fool more."""
    net, x, y = checkpoint("resnet20"), cifar10[0][:10], cifar10[1][:10]
    eps, steps = 0.75 / 255, 6
    ours = APGD(net, eps, steps, random_start=False, engine="exact")
    assert_the_same_verdicts(net, x, y, ours, eps=eps, steps=steps, loss="ce", both=False)
    start = (x + eps).clamp(0, 1)
    standing = net(ours(x, y, start=start)).argmax(1) == y
    proof = net(APGD(net, eps, steps, random_start=False)(x, y, start=start)).argmax(1) == y
    assert (proof <= standing).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss"), [("resnet4b", "dlr"), ("resnet2b", "ce")])
def test_the_same_verdicts_over_100_steps(
    name: str,
    loss: str,
    cifar10: tuple[Tensor, Tensor],
    checkpoint: Callable[[str], nn.Module],
) -> None:
    net, x, y = checkpoint(name), cifar10[0][:12], cifar10[1][:12]
    ours = APGD(net, 4 / 255, 100, loss=loss, random_start=False)
    assert_the_same_verdicts(net, x, y, ours, eps=4 / 255, steps=100, loss=loss, both=False)


@pytest.mark.slow
def test_the_same_verdicts_towards_all_classes(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    net, x, y = checkpoint("resnet4b"), cifar10[0][:8], cifar10[1][:8]
    ours = APGDT(net, 4 / 255, 10, random_start=False)
    assert_the_same_verdicts(net, x, y, ours, eps=4 / 255, steps=10, targets=9)
