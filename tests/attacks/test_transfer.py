"""The transfer attacks are those of torchattacks where nothing is random, and else the papers' plain loops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast import ops
from iaat_fast.attacks import DIFGSM, MIFGSM, NIFGSM, SINIFGSM, TIFGSM, VMIFGSM, VNIFGSM

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10
PLAIN: dict[str, tuple[Any, dict[str, Any]]] = {
    "NI": (NIFGSM, {}),
    "NI, decay 0.5": (NIFGSM, {"decay": 0.5}),
    "SI-NI": (SINIFGSM, {}),
    "SI-NI, 3 copies": (SINIFGSM, {"m": 3}),
    "DI, never": (DIFGSM, {"diversity_prob": 0.0, "decay": 1.0}),
    "TI": (TIFGSM, {"diversity_prob": 0.0}),
    "TI, wide": (TIFGSM, {"diversity_prob": 0.0, "nsig": 2, "len_kernel": 5, "decay": 1.0}),
    "TI, linear": (TIFGSM, {"diversity_prob": 0.0, "kernel_name": "linear", "len_kernel": 7}),
    "TI, uniform": (TIFGSM, {"diversity_prob": 0.0, "kernel_name": "uniform", "len_kernel": 3}),
}


def by_torchattacks(name: str, net: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks")
    cls, options = PLAIN[name]
    attack = getattr(torchattacks, cls.__name__)(net, EPS, ALPHA, STEPS, **options)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, y)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_bit_for_bit_on_a_small_network(
    name: str, targeted: bool, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    goal = (y + 3) % 10 if targeted else y
    cls, options = PLAIN[name]
    for engine in ("auto", "exact"):
        attack = cls(net, EPS, ALPHA, STEPS, targeted=targeted, engine=engine, **options)
        x_adv = attack(x, goal)
        assert torch.equal(x_adv, by_torchattacks(name, net, x, goal, targeted))
    if name != "DI, never":
        plain = MIFGSM(net, EPS, ALPHA, STEPS, decay=options.get("decay", 1.0), targeted=targeted)
        assert not torch.equal(x_adv, plain(x, goal))


@pytest.mark.parametrize("name", ["NI", "SI-NI", "TI"])
def test_bit_for_bit_on_a_real_network(
    name: str, cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    """At 16 images: torchattacks averages the loss, and only a power of two does that without a rounding."""
    net, x, y = checkpoint("resnet4b"), cifar10[0][:16], cifar10[1][:16]
    cls, options = PLAIN[name]
    x_adv = cls(net, EPS, ALPHA, STEPS, engine="exact", **options)(x, y)
    assert torch.equal(x_adv, by_torchattacks(name, net, x, y, targeted=False))


def drawn(x: Tensor, radius: float, number: int, *, seed: int, index: Tensor) -> Tensor:
    """x with the noise of this number, as `ops.random_start_linf` documents it."""
    key = (seed + number * 0xD1342543DE82EF95 + 2**63) % 2**64 - 2**63
    return ops.random_start_linf(x, radius, key, index, -torch.inf, torch.inf)


def gradient_of(net: nn.Module, x: Tensor, y: Tensor, seen: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(net(seen(leaf)), y, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


def stepped(x_adv: Tensor, momentum: Tensor, x: Tensor) -> Tensor:
    return (x_adv + ALPHA * momentum.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)


@pytest.mark.parametrize("cls", [VMIFGSM, VNIFGSM])
def test_variance_tuning_is_the_papers_loop(cls: Any, net: nn.Module, x: Tensor, y: Tensor) -> None:
    net, x, index = net.double(), x.double(), torch.tensor([5, 1, 7, 0, 2, 4, 3, 6])
    x_adv, momentum, variance = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    for step in range(4):
        look = 0.8 * ALPHA * momentum if cls is VNIFGSM else 0.0
        own = gradient_of(net, x_adv + look, y, lambda a: a)
        tuned = own + variance
        momentum = 0.8 * momentum + tuned / tuned.abs().mean((1, 2, 3), keepdim=True)
        near = [drawn(x_adv, 1.2 * EPS, 3 * step + i + 1, seed=9, index=index) for i in range(3)]
        variance = sum(gradient_of(net, a, y, lambda a: a) for a in near) / 3 - own
        x_adv = stepped(x_adv, momentum, x)
    attack = cls(net, EPS, ALPHA, 4, decay=0.8, N=3, beta=1.2)
    made = attack(x, y, seed=9, index=index)
    torch.testing.assert_close(made, x_adv, rtol=0, atol=1e-12)
    assert attack.stats.gradients == attack.stats.planned == 8 * 4 * (3 + 1)
    assert attack.stats.total == 4 * x.numel()


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.6])
def test_input_diversity_is_the_papers_loop(rate: float, net: nn.Module) -> None:
    """Images of another height than width, by interpolate, pad and autograd, sample by sample."""
    shape = (4, 3, 12, 8)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3)).double()
    net = nn.Sequential(*net[:-1], nn.Linear(384, 10)).double()
    y, index = net(x).argmax(1), torch.tensor([3, 0, 8, 1])
    x_adv, momentum = x.clone(), torch.zeros_like(x)
    resized = 0

    def diverse(image: Tensor, u: Tensor) -> Tensor:
        sides, (chance, size, *places) = image.shape[2:], u.tolist()
        if chance >= 0.7:
            return image
        nonlocal resized
        resized += 1
        low = [int(side * min(rate, 1)) for side in sides]
        canvas = [max(int(side * rate), side) for side in sides]
        new = [a + int(size * (b - a)) for a, b in zip(low, canvas, strict=True)]
        small = F.interpolate(image, new, mode="bilinear", align_corners=False)
        room = [a - b for a, b in zip(canvas, new, strict=True)]
        top, left = (int(p * (r + 1)) for p, r in zip(places, room, strict=True))
        padded = F.pad(small, (left, room[1] - left, top, room[0] - top))
        return F.interpolate(padded, tuple(sides), mode="bilinear", align_corners=False)

    for step in range(4):
        u = drawn(torch.full((4, 4), 0.5).double(), 0.5, step + 1, seed=9, index=index)
        grad = torch.cat(
            [
                gradient_of(net, x_adv[[i]], y[[i]], functools.partial(diverse, u=u[i]))
                for i in range(4)
            ]
        )
        momentum = 0.5 * momentum + grad / grad.abs().mean((1, 2, 3), keepdim=True)
        x_adv = stepped(x_adv, momentum, x)
    made = DIFGSM(net, EPS, ALPHA, 4, decay=0.5, resize_rate=rate, diversity_prob=0.7)
    torch.testing.assert_close(made(x, y, seed=9, index=index), x_adv, rtol=0, atol=1e-12)
    assert 0 < resized < 16, "both have been seen"


RANDOM = [VMIFGSM, VNIFGSM, DIFGSM, TIFGSM]
EVERY = [NIFGSM, SINIFGSM, *RANDOM]


@pytest.mark.parametrize("cls", EVERY)
def test_early_stopping_keeps_the_first_iterate_that_fools(cls: Any, net: nn.Module) -> None:
    """Whatever other points the gradients come from; momentum, variance and draws follow their samples."""
    net = net.double()
    x = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    y = net(x).argmax(1)
    weaker = cls in (DIFGSM, TIFGSM)
    options: dict[str, Any] = {"eps": 0.04 if weaker else 0.015, "alpha": 0.006, "seed": 0}
    if cls is TIFGSM:
        options["len_kernel"] = 3
    with pytest.warns(RuntimeWarning, match="0 steps"):
        iterates = [cls(net, **options, steps=k)(x, y) for k in range(6)]
    expected = iterates[-1].clone()
    for iterate in reversed(iterates):
        fooled = net(iterate).argmax(1) != y
        expected[fooled] = iterate[fooled]
    attack = cls(net, **options, steps=5, early_stop=True)
    torch.testing.assert_close(attack(x, y), expected, rtol=0, atol=1e-12)
    assert 0 < (net(expected).argmax(1) != y).sum() < 32
    assert attack.stats.gradients < attack.stats.planned, "some have left"


@pytest.mark.parametrize("cls", RANDOM)
def test_restarts_of_random_steps_need_no_random_start(
    cls: Any, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    options: dict[str, Any] = {"eps": 0.004, "alpha": 0.002, "steps": 3, "seed": 0}
    first = cls(net, **options)(x, y)
    assert not torch.equal(cls(net, **options)(x, y, restart=1), first)
    assert cls(net, **options, restarts=3)(x, y).shape == x.shape
    assert not torch.equal(cls(net, **options)(x, y, candidate=1), first)


@pytest.mark.parametrize("cls", [NIFGSM, SINIFGSM])
def test_restarts_of_steps_that_are_not_random_do(cls: Any, net: nn.Module) -> None:
    with pytest.raises(ValueError, match="restarts: 3 without random_start would all be the same"):
        cls(net, restarts=3)


def test_black_is_the_lower_bound(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Darker copies and padding: on images in [-1, 1] the attack is that on images in [0, 1]."""
    net, x = net.double(), x.double()

    def shifted(images: Tensor) -> Tensor:
        logits: Tensor = net((images + 1) / 2)
        return logits

    for cls in (SINIFGSM, DIFGSM):
        made = cls(shifted, 2 * EPS, 2 * ALPHA, 3, lo=-1.0, hi=1.0, seed=0)(2 * x - 1, y)
        expected = cls(net, EPS, ALPHA, 3, seed=0)(x, y)
        torch.testing.assert_close((made + 1) / 2, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (SINIFGSM, {"m": 0}, ValueError, r"^m: 0, expected at least 1"),
        (VMIFGSM, {"N": 2.5}, TypeError, r"^N: 2\.5, expected an int"),
        (VNIFGSM, {"beta": -1}, ValueError, r"^beta: -1, expected a number >= 0"),
        (DIFGSM, {"resize_rate": 0}, ValueError, r"^resize_rate: 0, expected a number > 0"),
        (DIFGSM, {"diversity_prob": 2}, ValueError, r"^diversity_prob: 2, expected a number in"),
        (TIFGSM, {"len_kernel": 4}, ValueError, r"^len_kernel: 4, expected an odd number"),
        (TIFGSM, {"nsig": 0}, ValueError, r"^nsig: 0, expected a number > 0"),
        (TIFGSM, {"kernel_name": "gauss"}, ValueError, r"did you mean 'gaussian'\?"),
        (TIFGSM, {"kernel": 3}, TypeError, r"^TIFGSM: unknown argument 'kernel'"),
        (NIFGSM, {"decay": -1}, ValueError, r"^decay: -1, expected a number >= 0"),
    ],
)
def test_bad_options(
    cls: Any, options: dict[str, Any], error: Any, message: str, net: nn.Module
) -> None:
    with pytest.raises(error, match=message):
        cls(net, **options)


@pytest.mark.parametrize("cls", [DIFGSM, TIFGSM])
def test_what_is_no_image_is_refused(cls: Any, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^x: shape \(8, 192\), expected \[N, C, H, W\]"):
        cls(nn.Linear(192, 10))(x.flatten(1), y)
