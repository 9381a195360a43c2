"""The divergence from the prediction at x, which TRADES climbs: its gradient, and attacks on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import APGD, APGDT, MIFGSM, PGD, losses
from iaat_fast.attacks.cudagraph import GraphRunner

EPS, ALPHA = 8 / 255, 2 / 255


@pytest.fixture
def start(x: Tensor) -> Tensor:
    return x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def plain_trades(
    model: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The inner loop as one writes it, and the samples whose clean prediction saturates."""
    p = model(x).log_softmax(1).exp().detach()
    x_adv = start
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        divergence = F.kl_div(model(leaf).log_softmax(1), p, reduction="sum")
        (grad,) = torch.autograd.grad(divergence, leaf)
        x_adv = x_adv.detach() + ALPHA * grad.sign()
        x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv, 1 - p.amax(1) <= 2.0**-12 * 1.01


def divergence(model: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
    with torch.no_grad():
        log_p, log_q = (model(images).log_softmax(1) for images in (x, x_adv))
    return (log_p.exp() * (log_p - log_q)).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_has_the_bits_of_autograd(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    z = 4 * torch.randn(60, 7, generator=generator).to(dtype)
    log_p = (4 * torch.randn(60, 7, generator=generator).to(dtype)).log_softmax(1)
    leaf = z.clone().requires_grad_()
    value = F.kl_div(leaf.log_softmax(1), log_p.exp(), reduction="sum")
    (expected,) = torch.autograd.grad(value, leaf)
    assert torch.equal(losses.cotangent("kl", z, log_p, targeted=False), expected)
    torch.testing.assert_close(losses.value("kl", z, log_p, targeted=False).sum(), value.detach())


def test_candidates_share_their_samples_predictions() -> None:
    z, log_p = torch.randn(12, 5), torch.randn(6, 5).log_softmax(1)
    for function in (losses.value, losses.cotangent):
        both = function("kl", z, log_p, targeted=False)
        assert torch.equal(both, function("kl", z, log_p.repeat(2, 1), targeted=False))


def test_where_nothing_saturates_rows_are_scaled_by_powers_of_two() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 7, generator=generator)
    near = z + 1e-4 * torch.randn(60, 7, generator=generator)  # as at the first step of TRADES
    plain, proof = (
        losses.cotangent("kl", near, z.log_softmax(1), targeted=False, saturation_proof=proof)
        for proof in (False, True)
    )
    ratio = (proof / plain)[:, :1]
    assert torch.equal(torch.frexp(ratio).mantissa, torch.full((60, 1), 0.5))
    assert torch.equal(proof, plain * ratio)
    assert ((proof.abs().amax(1) >= 0.5) & (proof.abs().amax(1) < 1)).all()


@pytest.mark.parametrize("gap", [14.0, 30.0, 200.0])
def test_where_the_prediction_saturates_the_gradient_points_where_float64_says(gap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 6, generator=generator)
    z[:, 2] += gap
    other = z + 0.1 * torch.randn(40, 6, generator=generator)
    found = losses.cotangent(
        "kl", other, z.log_softmax(1), targeted=False, saturation_proof=True
    ).double()
    log_p, log_q = z.double().log_softmax(1), other.double().log_softmax(1)
    exact = log_q.exp() - log_p.exp()
    exact[:, 2] = 0
    exact[:, 2] = -exact.sum(1)
    largest = torch.maximum(log_p, log_q).index_fill(1, torch.tensor(2), -torch.inf).amax(1)
    # A logarithm of size at most gap + 10 and its distance from the largest one are rounded three
    # times, each by 2**-24 of gap + 10; an exponential, at most 1, is off by as much; an entry is a
    # difference of two, and that of class 2 the sum of five.
    bound = 5 * 2 * 3 * (gap + 10) * 2.0**-24
    expected = exact * (-largest).exp().view(-1, 1)
    assert (found - expected).abs().max() <= bound
    assert (expected.abs().amax(1) > 20 * bound).float().mean() > 0.9, "not lost in that error"


@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_pgd_is_bit_for_bit_the_plain_loop(
    engine: str, net: nn.Module, x: Tensor, y: Tensor, start: Tensor
) -> None:
    expected, saturated = plain_trades(net, x, start, 10)
    assert not saturated.any()
    x_adv = PGD(net, EPS, ALPHA, 10, loss="kl", engine=engine)(x, y, start=start)
    assert torch.equal(x_adv, expected)
    assert not torch.equal(x_adv, PGD(net, EPS, ALPHA, 10, engine=engine)(x, y, start=start))
    other_classes = (y + 1) % 10
    pgd = PGD(net, EPS, ALPHA, 10, loss="kl", engine=engine)
    assert torch.equal(pgd(x, other_classes, start=start), expected), "labels play no part"


def test_on_a_real_network(
    cifar10: tuple[Tensor, Tensor], checkpoint: Callable[[str], nn.Module]
) -> None:
    net, x, y = checkpoint("resnet20"), cifar10[0][:24], cifar10[1][:24]
    start = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    expected, saturated = plain_trades(net, x, start, 4)
    assert 4 < int(saturated.sum()) < 20
    x_adv = PGD(net, EPS, ALPHA, 4, loss="kl")(x, y, start=start)
    same = (x_adv == expected).flatten(1).all(1)
    assert same[~saturated].all()
    assert not same.all()
    assert torch.equal(
        PGD(net, EPS, ALPHA, 4, loss="kl", engine="exact")(x, y, start=start), expected
    )


def test_a_saturated_network_moves_by_its_strongest_rival(
    net: nn.Module, x: Tensor, y: Tensor, start: Tensor
) -> None:
    """With logits times 10**4 the plain gradient is 0, for float32 tells no other class from 0.

    What is left in exact arithmetic is the rival's share: the way on which its margin has changed.
    """

    def confident(images: Tensor) -> Tensor:
        return 1e4 * net(images)

    largest = confident(x).topk(3).values
    keep = (largest[:, 0] - largest[:, 1] > 120) & (largest[:, 1] - largest[:, 2] > 50)
    assert keep.sum() >= 3
    x, y, start = x[keep], y[keep], start[keep].clamp(0, 1)
    with pytest.warns(RuntimeWarning, match="entries are 0"):
        plain = PGD(confident, EPS, ALPHA, 1, loss="kl", engine="exact")(x, y, start=start)
    assert torch.equal(plain, start), "it stays put"

    classes = net(x).topk(2).indices

    def margin(images: Tensor) -> Tensor:
        top, rival = net(images).gather(1, classes).unbind(1)
        return rival - top

    leaf = start.clone().requires_grad_()
    (grad,) = torch.autograd.grad(margin(leaf).sum(), leaf)
    change = (margin(start) - margin(x)).sign().view(-1, 1, 1, 1)
    found = PGD(confident, EPS, ALPHA, 1, loss="kl")(x, y, start=start)
    inside = (found > 0) & (found < 1)
    agree = ((found - start).sign() == change * grad.sign())[inside]
    assert agree.float().mean() > 0.99


@pytest.mark.parametrize("options", [{"restarts": 3}, {"early_stop": True}], ids=str)
def test_restarts_and_stopping_early_fool_no_less(
    options: dict[str, Any], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    last = net(PGD(net, 0.1, 0.02, 10, loss="kl", seed=0)(x, y)).argmax(1) != y
    more = net(PGD(net, 0.1, 0.02, 10, loss="kl", seed=0, **options)(x, y)).argmax(1) != y
    assert 0 < last.sum() < 8
    assert more[last].all()


def test_candidates_of_several_radii(net: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> None:
    """In float64: a batch of another size rounds differently, which float32 may see in a sign."""
    net, x, start = net.double(), x.double(), start.double()
    pgd = PGD(net, EPS, ALPHA, 5, loss="kl", engine="exact")
    radii = torch.tensor([0.02, 0.05], dtype=torch.float64).repeat_interleave(8)
    both = pgd(x, y, eps=radii, start=start)
    for k, eps in enumerate((0.02, 0.05)):
        assert torch.equal(both[8 * k : 8 * k + 8], pgd(x, y, eps=eps, start=start))


@pytest.mark.parametrize("bn", ["train", "train_update"])
def test_under_batch_statistics(bn: str, bn_net: nn.Module, x: Tensor, start: Tensor) -> None:
    """The prediction at x is made in the attack's mode; "train_update" counts its forward, too."""
    norm, y = bn_net[1], torch.zeros(8, dtype=torch.int64)
    PGD(bn_net, EPS, ALPHA, 3, loss="kl", bn=bn)(x, y, start=start)
    assert norm.num_batches_tracked == (4 if bn == "train_update" else 0)


def test_replays(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def capture(body: Callable[[], None], pool: object) -> Callable[[], None]:
        replays.append(body)
        return body

    replays: list[Callable[[], None]] = []
    pgd = PGD(net, seed=0, loss="kl")
    pgd.network._graphs = GraphRunner(capture)
    pgd.network._capturable = ("cpu",)
    for images in (x, x, x.flip(0), x * 0.9):
        assert torch.equal(pgd(images, y), PGD(net, seed=0, loss="kl")(images, y))
    assert len(replays) == 2, "the steps, and a forward that tells what they have frozen"


@pytest.mark.parametrize(
    "attack",
    [
        lambda net: PGD(net, EPS, ALPHA, 20, loss="kl", engine="fast", seed=0),
        lambda net: PGD(net, EPS, ALPHA, 20, loss="kl", precision="bf16", seed=0),
        lambda net: APGD(net, EPS, 20, loss="kl", early_stop=False, seed=0),
        lambda net: MIFGSM(net, EPS, ALPHA, 20, loss="kl", random_start=True, seed=0),
    ],
    ids=["a copy", "a copy in bf16", "APGD", "MI-FGSM"],
)
def test_with_the_rest_of_the_engine(
    attack: Callable[[nn.Module], PGD | APGD], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    corners = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).sign()
    by_chance = divergence(net, x, (x + EPS * corners).clamp(0, 1)).mean()
    assert divergence(net, x, attack(net)(x, y)).mean() > 4 * by_chance


@pytest.mark.parametrize("targeted", [True, "random"])
def test_it_has_no_targets(net: nn.Module, targeted: Any) -> None:
    with pytest.raises(ValueError, match=r"^targeted: .* with loss 'kl', expected False"):
        PGD(net, loss="kl", targeted=targeted)
    with pytest.raises(ValueError, match=r"^loss: 'kl', expected one of 'ce', 'cw', 'dlr'"):
        APGDT(net, loss="kl")


def test_it_needs_a_start(net: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> None:
    pgd = PGD(net, loss="kl", random_start=False)
    with pytest.raises(ValueError, match=r"^start: None, but without random_start the gradient"):
        pgd(x, y)
    assert not torch.equal(pgd(x, y, start=start), x)


def test_classes_are_checked(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^y: 10, expected a class in 0 \.\.\. 9"):
        PGD(net, loss="kl")(x, y * 0 + 10)
