"""Expectation over transformation: gradients and verdicts of randomised models are those of several draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import (
    APGD,
    FABT,
    FGSM,
    PGD,
    DeepFool,
    EngineOptions,
    MultiAttack,
    Square,
    losses,
)
from iaat_fast.attacks.model.ensemble import mean_of_draws
from tests.attacks.every_attack import EVERY_ATTACK
from tests.folded import every

WITHOUT_GRADIENT_STEPS = ("FABT", "Square", "DeepFool")
BY_GRADIENT = [name for name in EVERY_ATTACK if name not in WITHOUT_GRADIENT_STEPS]


class Noisy(nn.Module):
    """A network behind Gaussian noise, drawn in every mode."""

    def __init__(self, net: nn.Module, std: float) -> None:
        super().__init__()
        self.net, self.std = net, std

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.std * torch.randn_like(x))


class InTurn(nn.Module):
    """Forward k adds the k-th of some vectors to the logits, in turn: draws that a test knows."""

    def __init__(self, net: nn.Module, added: Tensor) -> None:
        super().__init__()
        self.net, self.added, self.forwards = net, added, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.net(x) + self.added[(self.forwards - 1) % len(self.added)]


class ScaledInTurn(nn.Module):
    """Forward k multiplies the logits by the k-th of some numbers, in turn."""

    def __init__(self, net: nn.Module, scales: Tensor) -> None:
        super().__init__()
        self.net, self.scales, self.forwards = net, scales, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.net(x) * self.scales[(self.forwards - 1) % len(self.scales)]


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_is_torchattacks_eotpgd_bit_for_bit(
    net: nn.Module, x: Tensor, y: Tensor, targeted: bool
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, options = Noisy(net, 0.3), {"eps": 0.1, "alpha": 0.03, "steps": 3}
    theirs = torchattacks.EOTPGD(model, eot_iter=3, random_start=False, **options)
    ours = PGD(
        model, eot=3, random_start=False, targeted=targeted, engine="exact", seed=0, **options
    )
    labels = (y + 1) % 10 if targeted else y
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    torch.manual_seed(0)
    expected = theirs(x, labels)
    torch.manual_seed(0)
    assert torch.equal(ours(x, labels), expected)
    torch.manual_seed(1)
    assert not torch.equal(ours(x, labels), expected), "the model draws from torch's generator"


@every(name=BY_GRADIENT)
def test_a_deterministic_model_is_attacked_as_by_one_draw_at_the_cost_of_all(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """Two equal draws have the bits of one: their sum and its half are exact."""
    one, two = (EVERY_ATTACK[name](net, engine="exact", eot=eot) for eot in (1, 2))
    expected, result = one.run(x, y), two.run(x, y)
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.success, expected.success)
    assert torch.equal(result.forwards, 2 * expected.forwards)
    assert torch.equal(result.backwards, 2 * expected.backwards)
    assert two.stats.gradients == 2 * one.stats.gradients > 0
    assert two.stats.planned == 2 * one.stats.planned
    assert two.stats.total == one.stats.total


def gradient_of(attack: PGD, x: Tensor, goal: Tensor) -> Tensor:
    """The gradient of the attack's loss, each sample's of length 1."""
    with attack.network.attacked(x):
        grad = attack.network.gradient(x, lambda logits: attack._cotangent(logits, goal))
    return F.normalize(grad.flatten(1))


@every(engine=["auto", EngineOptions(fold=False)], loss=["ce", "kl", "dlr"])
def test_the_mean_of_equal_draws_is_the_gradient_of_one(
    engine: str | EngineOptions, loss: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """Up to rounding, and the positive factor per sample that one draw alone may have."""
    # Far from the prediction, so that the difference of the probabilities has its bits.
    goal = (20 * net(x.roll(1, 0))).log_softmax(1).detach() if loss == "kl" else y
    one, three = (
        gradient_of(PGD(net, loss=loss, engine=engine, eot=eot), x, goal) for eot in (1, 3)
    )
    assert (three - one).norm(dim=1).max() < 1e-5


@pytest.mark.slow
def test_a_program_gives_the_mean_of_its_draws(net: nn.Module, x: Tensor, y: Tensor) -> None:
    fast = PGD(net, engine="fast", eot=3)
    assert (gradient_of(fast, x, y) - gradient_of(PGD(net), x, y)).norm(dim=1).max() < 1e-5
    assert "folded" in fast.network.gradient_source


def test_a_draw_weighs_as_much_as_its_loss_has_gradient(net: nn.Module, x: Tensor) -> None:
    """Also where one of them saturates, whose gradient of one draw alone is scaled up."""
    y, loss = net(x).argmax(1), torch.zeros((), dtype=torch.float64)
    scales = torch.tensor([1.0, 200.0])
    leaf = x.double().requires_grad_()
    for scale in scales:
        logits = net.double()(leaf) * scale
        loss = loss + F.cross_entropy(logits, y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    expected = F.normalize(grad.flatten(1))
    found = gradient_of(PGD(ScaledInTurn(net.float(), scales), eot=2), x, y)
    assert (found - expected).norm(dim=1).max() < 1e-5


def test_draws_of_a_saturated_loss_keep_their_gradient_and_their_weights() -> None:
    """To float32's precision, from 1 - p_y of 0.1 down to 1e-35, where softmax - onehot is 0."""
    z = torch.zeros(8, 4, dtype=torch.float64)
    z[:, 1] = torch.linspace(4, 80, 8)
    z[:, 2] = 0.5
    y, log_p = torch.ones(8, dtype=torch.int64), (z / 2).log_softmax(1)
    for loss, goal in (("ce", y), ("kl", log_p.float())):
        found = losses.cotangent(
            loss, z.float(), goal, targeted=False, saturation_proof=True, scaled=False
        )
        others = torch.arange(4) != 1
        expected = z.softmax(1) - (log_p.exp() if loss == "kl" else 0)
        torch.testing.assert_close(
            found.double()[:, others], expected[:, others], rtol=1e-4, atol=0
        )
        torch.testing.assert_close(
            found.double()[:, 1], -expected[:, others].sum(1), rtol=1e-4, atol=0
        )


def test_the_mean_of_draws_is_that_of_their_probabilities() -> None:
    draws = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0)) * 30
    draws[:, 0, 1] = -torch.inf  # masked in all draws
    draws[2, 1, 3] = -torch.inf  # masked in one
    mean = mean_of_draws(list(draws))
    torch.testing.assert_close(mean.softmax(1), draws.softmax(2).mean(0), rtol=1e-4, atol=1e-30)
    assert mean[0, 1] == -torch.inf
    assert torch.equal(mean_of_draws([draws[0]] * 7), draws[0])
    tiny = torch.tensor([[1e-9, 2e-9, 0.0]])
    assert torch.equal(mean_of_draws([tiny] * 20), tiny), "its softmax is the same for all classes"


def test_one_lucky_draw_fools_no_verdict(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Every twentieth forward predicts something else, with all confidence: it moves a mean by 1/20."""
    added = torch.zeros(20, 10)
    added[19, 3] = 1e6
    sure = net(x).topk(2).values
    scale = 5 / (sure[:, 0] - sure[:, 1])[y != 3].median()
    x, y = x[y != 3], y[y != 3]

    def model() -> InTurn:
        return InTurn(ScaledInTurn(net, scale.view(1)), added)

    p = model().net(x).softmax(1)
    top = p.topk(2).values
    x, y = x[top[:, 0] - top[:, 1] > 0.2], y[top[:, 0] - top[:, 1] > 0.2]
    assert len(x) >= 3
    options: dict[str, Any] = {"eps": 1e-6, "early_stop": True, "seed": 0}
    for make in (lambda m, **o: PGD(m, alpha=1e-6, **o), APGD):
        several, one = (
            make(model(), steps=steps, eot=eot, **options) for steps, eot in ((3, 20), (25, 1))
        )
        assert not several.run(x, y).success.any()
        assert several.stats.gradients == several.stats.planned, "no sample leaves the batch"
        assert torch.equal(several.logits(x).argmax(1), y)
        one(x, y)
        assert one.stats.gradients < one.stats.planned, "the lucky draw stops it"


def test_several_attacks_have_one_number_of_draws_for_verdicts(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    seen: list[Tensor] = []

    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return self.net(images)

    model = Seeing()
    together = MultiAttack([PGD(model, 1e-3, 1e-3, 1, eot=4), Square(model, 1e-3, n_queries=1)])
    together(x, y)
    assert all(torch.equal(images, seen[-1]) for images in seen[-4:]), "the verdict after Square"
    seen.clear()
    together.logits(x)
    assert len(seen) == 4


@every(make=[lambda model, **o: PGD(model, alpha=1e-6, early_stop=True, **o), APGD])
def test_a_restart_is_the_last_only_if_new_draws_are_fooled_too(
    make: Callable[..., Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """Both draws of the first step are lucky, those of the verdict at the end of the restart are not."""
    added = torch.zeros(1000, 10)
    added[:2, 3] = 1000.0
    x, y = x[y != 3], y[y != 3]
    attack = make(InTurn(net, added), eps=1e-6, steps=1, restarts=2, eot=2, seed=0)
    attack(x, y)
    assert attack.stats.gradients == attack.stats.planned == 2 * 2 * len(x)


def test_several_draws_find_what_one_cannot() -> None:
    """Noise drowns the gradient of each draw; their mean has the sign of the loss's own."""
    torch.manual_seed(0)
    weight = torch.randn(2, 64).sign()

    class Drowned(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ (weight + 4 * torch.randn_like(weight)).T

    x = torch.full((4, 1, 8, 8), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    uphill = (weight[1] - weight[0]).view(1, 8, 8)
    moves = uphill != 0

    def right(eot: int) -> float:
        step = FGSM(Drowned(), eps=0.1, eot=eot, loss="cw", engine="exact")(x, y) - x
        return float((step.sign() == uphill.sign())[:, moves].float().mean())

    assert right(1) < 0.75
    assert right(400) > 0.99


def test_half_precision_images_are_averaged_in_float32() -> None:
    """256 + 1 - 256 is 0 in bfloat16."""

    class Weighted(nn.Module):
        draw = 0

        def forward(self, images: Tensor) -> Tensor:
            weight = (256.0, 1.0, -256.0)[self.draw % 3]
            self.draw += 1
            return torch.stack([0 * images.flatten(1)[:, 0], weight * images.flatten(1)[:, 0]], 1)

    x, y = torch.full((2, 1), 0.5, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64)
    x_adv = FGSM(Weighted(), eps=0.125, eot=3, loss="cw")(x, y)
    assert torch.equal(x_adv, x + 0.125)


@every(eot=[0, -1, 1.5, True, "2"])
def test_draws_are_a_whole_number(eot: Any, net: nn.Module) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^eot: .*expected (an int|at least 1)$"):
        APGD(net, eot=eot)


@every(make=[FABT, Square, DeepFool])
def test_attacks_without_gradient_steps_take_no_draws(
    make: Callable[..., Any], net: nn.Module
) -> None:
    with pytest.raises(TypeError, match=rf"^{make.__name__}: unknown argument 'eot'"):
        make(net, eot=2)


def test_an_attack_says_how_many_draws_it_takes(net: nn.Module) -> None:
    assert "eot=20" in repr(APGD(net, eot=20))
    assert "eot" not in repr(PGD(net))
