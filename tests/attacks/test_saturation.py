"""Where cross-entropy saturates the plain loop is blind; PGD is not, and elsewhere it is the plain loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD

EPS, ALPHA = 8 / 255, 2 / 255


def plain_pgd(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The plain loop's result, and the samples that saturate (1 - p_y <= 2**-12) at one of its iterates."""
    x_adv, saturated = start, torch.zeros(len(x), dtype=torch.bool)
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        logits = model(leaf)
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
        p = logits.detach().softmax(1).gather(1, y.view(-1, 1))[:, 0]
        saturated |= 1 - p <= 2.0**-12 * 1.01
        x_adv = x_adv.detach() + ALPHA * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv, saturated


@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_a_confident_real_network(
    engine: str, cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    (images, labels), net = cifar10, checkpoint("resnet20")
    x, y = images[:40], labels[:40]
    expected, saturated = plain_pgd(net, x, y, x, steps=5)
    assert 10 < int(saturated.sum()) < 36
    x_adv = PGD(net, EPS, ALPHA, 5, random_start=False, engine=engine)(x, y)
    same = (x_adv == expected).flatten(1).all(1)
    assert same[~saturated].all()
    assert bool(same.all()) == (engine == "exact")


@pytest.mark.filterwarnings("ignore:.* gradient entries are 0:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saturated_network_is_fooled_all_the_same(
    net: nn.Sequential, x: Tensor, y: Tensor, dtype: torch.dtype
) -> None:
    """With logits times 10**4 the plain gradient is 0 for every image, and the same attack is as strong as before."""
    net, x = net.to(dtype), x.to(dtype)
    y = net(x).argmax(1)

    def confident(images: Tensor) -> Tensor:
        return 1e4 * net(images)

    gaps = confident(x).topk(2).values
    keep = gaps[:, 0] - gaps[:, 1] > 110  # below it the plain gradient may not be 0
    assert keep.sum() >= 3
    x, y = x[keep], y[keep]
    plain = PGD(confident, 0.1, 0.02, 20, random_start=False, engine="exact")
    assert torch.equal(plain(x, y), x)
    ours = PGD(confident, 0.1, 0.02, 20, random_start=False)
    assert (confident(ours(x, y)).argmax(1) != y).all()


def test_the_same_signs_as_in_float64(net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    """At logits times 40, float32 has lost most rows of the plain gradient; float64 has not."""

    def confident(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda images: 40 * model(images)

    one_step = {"eps": 0.1, "alpha": 0.02, "steps": 1, "random_start": False}
    x_adv = PGD(confident(net), **one_step)(x, y)
    exact = PGD(confident(net.double()), **one_step, engine="exact")(x.double(), y)
    moved_alike = ((x_adv > x) == (exact > x.double())).double().mean()
    assert moved_alike > 0.999


def test_samples_tied_by_batch_statistics_are_not_rescaled(x: Tensor) -> None:
    """A BatchNorm layer that keeps no running statistics uses the batch's in eval mode too."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 10)).eval()
    with torch.no_grad():
        net[4].weight *= 20
        y = net(x).argmax(1)
    expected, saturated = plain_pgd(net, x, y, x, steps=3)
    assert 0 < int(saturated.sum()) < len(x), "some saturate, some do not"
    x_adv = PGD(net, 8 / 255, 2 / 255, 3, random_start=False)(x, y)
    assert torch.equal(x_adv, expected)
