"""The baselines: each loss against its paper's formula, what each attack does, what each draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast import attacks, ops
from iaat_fast.attacks import losses as attack_losses
from iaat_fast.data import ImageData, fetch
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.methods import METHODS, Batch, Method
from iaat_fast.train.methods.attack import gaussian_start, make_attack
from iaat_fast.train.methods.cat import Smoothed, dirichlet
from iaat_fast.train.methods.mixup import Pairs
from iaat_fast.train.methods.mma import Margins, bisected_margin
from iaat_fast.train.step import TrainingStep, make_memory

CPU = torch.device("cpu")
INDEX = torch.arange(12)
EPS, ALPHA = 0.2, 0.05

Make = Callable[..., Method]


@pytest.fixture
def batch(tiny_data: ImageData) -> tuple[Tensor, Tensor]:
    """12 images in float64, so that formulas may be compared closely, and their labels."""
    x, y = fetch(tiny_data.train, INDEX)
    return x.double(), y


@pytest.fixture
def model(batch: tuple[Tensor, Tensor]) -> nn.Module:
    """A smooth network that is right on most images, without anything that draws or depends on the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Softplus(), nn.Linear(8, 3))
    net.double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


@pytest.fixture
def make(tiny_config: Callable[..., TrainConfig], model: nn.Module) -> Make:
    def call(name: str, **parts: Any) -> Method:
        config = tiny_config(method=name, **parts)
        return METHODS[name](config, model, make_memory(config, 24, CPU))

    return call


def prepared(method: Method, batch: tuple[Tensor, Tensor], seed: int = 11) -> Batch:
    x, y = batch
    return method.prepare(x, y, INDEX, epoch=5, seed=seed)


def plain_attack(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    steps: int = 3,
    eps: float | Tensor = EPS,
) -> Tensor:
    """The released codes' inner loop, at the radius and step of the configuration."""
    x_adv = start
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
        x_adv = x_adv.detach() + ALPHA * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv


def assert_same_gradients(model: nn.Module, ours: Tensor, formula: Tensor) -> None:
    """Two scalars, equal, with equal gradients of the weights, up to the rounding of float64."""
    torch.testing.assert_close(ours, formula, rtol=1e-11, atol=1e-13)
    weights = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(ours, weights), torch.autograd.grad(formula, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_per_sample_and_counts_as_announced(
    name: str, make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    method = make(name)
    outcome = method.outcome(model, prepared(method, batch))
    assert outcome.loss.shape == (12,)
    assert outcome.loss.requires_grad
    assert torch.isfinite(outcome.loss).all()
    assert (outcome.clean is not None) == method.counts_clean
    assert (outcome.robust is not None) == method.counts_robust
    for verdicts in (outcome.clean, outcome.robust):
        assert verdicts is None or (verdicts.dtype is torch.bool and verdicts.shape == (12,))


@pytest.mark.parametrize("name", METHODS)
def test_preparing_leaves_weights_and_gradients_alone(
    name: str, make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    before = [weight.detach().clone() for weight in model.parameters()]
    made = prepared(make(name), batch)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(weight.grad is None for weight in model.parameters())
    assert made.x_adv is None or not made.x_adv.requires_grad


@pytest.mark.parametrize("name", ["mixup", "trades", "mart", "nfgsm", "mma"])
def test_all_that_is_drawn_follows_the_seed(
    name: str, make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    # Steps that do not cross the whole ball leave something of the start.
    parts = {"attack": {"steps": 1}, "baseline": {"mma_step_scale": 0.5}}
    torch.manual_seed(1)
    one = prepared(make(name, **parts), batch)
    torch.manual_seed(2)
    same = prepared(make(name, **parts), batch)
    other = prepared(make(name, **parts), batch, seed=12)
    assert torch.equal(one.x_adv, same.x_adv)
    assert not torch.equal(one.x_adv, other.x_adv)
    if isinstance(one, Pairs):
        assert one.weight == same.weight != other.weight
        assert torch.equal(one.partner, same.partner)


@pytest.mark.parametrize("name", ["trades", "mart", "nfgsm", "mma", "cat"])
def test_what_a_sample_becomes_does_not_depend_on_its_batch(
    name: str, make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    whole = prepared(make(name), batch).x_adv
    half = make(name).prepare(x[6:], y[6:], INDEX[6:], epoch=5, seed=11).x_adv
    # Products over other batch sizes may be summed in another order; an entry near 0 may then turn.
    assert (torch.isclose(whole[6:], half, atol=1e-9)).float().mean() > 0.99


def test_the_gaussian_start() -> None:
    x = torch.full((40, 1, 30, 30), 0.5)
    index = torch.arange(100, 140)
    start = gaussian_start(x, index, 7, clamp=False)
    noise = ((start - x) / 0.001).flatten().double().numpy()
    # 36,000 draws; a float32 of 0.5 resolves the deviation in steps of 6e-5 of it.
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    some = gaussian_start(x[5:9], index[5:9], 7, clamp=False)
    assert torch.equal(some, start[5:9]), "it follows the sample"
    assert not torch.equal(start, gaussian_start(x, index, 8, clamp=False))


def test_the_gaussian_start_is_clamped_as_asked() -> None:
    x, index = torch.zeros(4, 1, 8, 8), torch.arange(4)
    assert gaussian_start(x, index, 0, clamp=False).min() < 0
    assert gaussian_start(x, index, 0, clamp=True).min() == 0


def test_mixup_is_the_cross_entropy_with_mixed_labels(
    make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """Lamb et al. 2019: the mean of the mixup losses on clean and on adversarial samples."""
    (x, y), method = batch, make("mixup")
    made = prepared(method, batch)
    assert isinstance(made, Pairs)
    assert sorted(made.partner.tolist()) == list(range(12))
    assert torch.equal(made.x_adv, make("adv").attack(x, y, index=INDEX, seed=11))
    share = made.weight
    onehot = F.one_hot(y, 3).double()
    labels = share * onehot + (1 - share) * onehot[made.partner]
    formula = sum(
        F.cross_entropy(model(share * images + (1 - share) * images[made.partner]), labels)
        for images in (x, made.x_adv)
    )
    assert_same_gradients(model, method.outcome(model, made).loss.mean(), formula / 2)


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_mixing_weights_are_beta_distributed(
    alpha: float, make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    method = make("mixup", baseline={"mixup_alpha": alpha}, attack={"steps": 1})
    weights = [prepared(method, batch, seed).weight for seed in range(300)]
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_parts_of_a_batch_share_the_mixing_weight(make: Make, batch: tuple[Tensor, Tensor]) -> None:
    (x, y), method = batch, make("mixup")
    part = method.prepare(x[:5], y[:5], INDEX[:5], epoch=0, seed=11)
    assert isinstance(part, Pairs)
    assert part.weight == prepared(method, batch).weight
    assert sorted(part.partner.tolist()) == list(range(5))


@pytest.mark.parametrize(
    ("noise", "size", "project"), [(2.0, 1.0, False), (1.0, 1.25, True), (0.0, 1.0, True)]
)
@pytest.mark.parametrize("clamp", [True, False])
def test_a_single_step_is_that_of_the_released_codes(
    noise: float,
    size: float,
    project: bool,
    clamp: bool,
    make: Make,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
) -> None:
    """de Jorge et al. 2022 and Wong et al. 2020, who step a perturbation; noise 0 is FGSM."""
    x, y = batch
    own = {"nfgsm_noise": noise, "nfgsm_step": size, "nfgsm_project": project}
    method = make("nfgsm", baseline=own, attack={"clamp_start": clamp})
    made = prepared(method, batch)
    box = (0.0, 1.0) if clamp else (-torch.inf, torch.inf)
    start = ops.random_start_linf(x, noise * EPS, torch.tensor([11]), INDEX, *box)
    assert (start - x).abs().max() <= noise * EPS
    leaf = start.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    delta = (start - x) + size * EPS * grad.sign()
    if project:
        delta = delta.clamp(-EPS, EPS)
    # Both add at most three numbers below 1 in float64, in another order.
    torch.testing.assert_close(made.x_adv, (x + delta).clamp(0, 1), rtol=0, atol=1e-15)
    outcome = method.outcome(model, made)
    assert_same_gradients(model, outcome.loss.mean(), F.cross_entropy(model(made.x_adv), y))
    assert ((made.x_adv - x).abs().max() > 1.5 * EPS) is not project


def test_a_noisy_start_scales_with_each_samples_radius(
    tiny_config: Callable[..., TrainConfig], model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    (x, y), eps = batch, torch.linspace(0, 0.22, 12)
    reach = {}
    for project in (True, False):
        fields = {"steps": 1, "noise": 2.0, "alpha_rule": "radius", "project": project}
        attack = make_attack(tiny_config(attack=fields).attack, model, noisy=True)
        x_adv = attack(torch.full_like(x, 0.5), y, eps=eps, index=INDEX, seed=1)
        reach[project] = (x_adv - 0.5).abs().flatten(1).amax(1)
        # Candidates of one sample have noise of their own, each on the scale of its radius.
        both = attack(x, y, eps=torch.cat([eps, eps]), index=INDEX, seed=1)
        assert torch.equal(both[:12], attack(x, y, eps=eps, index=INDEX, seed=1))
        assert not torch.equal(both[:12], both[12:])
    torch.testing.assert_close(reach[True], eps.double(), rtol=1e-6, atol=0)
    assert (reach[False] <= 3 * eps * (1 + 1e-6)).all()
    assert (reach[False][1:] > 2 * eps[1:]).all(), "the step goes beyond most of the noise"
    assert reach[False][0] == 0, "a sample of radius 0 stays as it is"


@pytest.mark.parametrize("name", ["adv", "mixup", "iaat"])
def test_noise_and_projection_are_those_asked_for(
    name: str, make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    assert type(make(name).attack) is attacks.PGD, "the defaults are plain PGD"
    noisy = {"steps": 1, "noise": 2.0, "alpha_rule": "radius", "project": False}
    method = make(name, attack=noisy)
    distance = (prepared(method, batch).x_adv - batch[0]).abs().flatten(1).amax(1)
    radii = method.memory.values[INDEX]
    assert (distance <= 3 * radii * (1 + 1e-6)).all()
    assert (distance > 1.5 * radii).sum() >= 6


def test_images_beyond_their_radius_are_refused_where_the_radius_is_the_samples_own(
    tiny_config: Callable[..., TrainConfig],
) -> None:
    with pytest.raises(
        ValueError, match=r"attack\.alpha_rule: 'fixed', expected 'radius' with att"
    ):
        tiny_config(attack={"project": False})
    beyond = {"project": False, "alpha_rule": "radius"}
    with pytest.raises(
        ValueError, match=r"epsilon\.final: 'reuse', .* expected 'exact' with attac"
    ):
        tiny_config(attack=beyond, epsilon={"final": "reuse"})
    with pytest.raises(ValueError, match=r"attack\.noise: -1, expected a number >= 0"):
        tiny_config(attack={"noise": -1})
    with pytest.raises(ValueError, match=r"baseline\.nfgsm_step: 0, expected a number > 0"):
        tiny_config(method="nfgsm", baseline={"nfgsm_step": 0})
    tiny_config(method="adv", attack={"project": False})


def test_trades_is_its_formula(make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Zhang et al. 2019, Equation 5, and the inner loop of the released code."""
    (x, y), method = batch, make("trades", baseline={"trades_beta": 6.0})
    made = prepared(method, batch)
    start = gaussian_start(x, INDEX, 11, clamp=True)
    p = model(x).softmax(1).detach()
    expected = plain_attack(lambda a: (p * (p.log() - model(a).softmax(1).log())).sum(), x, start)
    torch.testing.assert_close(made.x_adv, expected, rtol=0, atol=1e-9)
    p, q = model(x).softmax(1), model(made.x_adv).softmax(1)
    natural = -p.gather(1, y.view(-1, 1)).log().mean()
    robust = (p * (p / q).log()).sum() / 12
    outcome = method.outcome(model, made)
    assert_same_gradients(model, outcome.loss.mean(), natural + 6 * robust)
    assert torch.equal(outcome.clean, p.argmax(1) == y)
    assert torch.equal(outcome.robust, q.argmax(1) == y)


@pytest.mark.parametrize("guards", [True, False])
def test_mart_is_its_formula(
    guards: bool, make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """Wang et al. 2020, with and without the released code's guards against log(0)."""
    (x, y), method = batch, make("mart", baseline={"mart_beta": 5.0})
    made = prepared(method, batch)
    start = gaussian_start(x, INDEX, 11, clamp=True)
    expected = plain_attack(lambda a: F.cross_entropy(model(a), y, reduction="sum"), x, start)
    torch.testing.assert_close(made.x_adv, expected, rtol=0, atol=1e-9)
    p, q = model(x).softmax(1), model(made.x_adv).softmax(1)
    rows = []
    for i, label in enumerate(y.tolist()):
        rival = torch.cat([q[i, :label], q[i, label + 1 :]]).max()
        one, tiny, all_of = (1.0001, 1e-12, 1.0000001) if guards else (1.0, 0.0, 1.0)
        boosted = -q[i, label].log() - (one - rival + tiny).log()
        divergence = sum(p[i, k] * (p[i, k].log() - (q[i, k] + tiny).log()) for k in range(3))
        rows.append(boosted + 5 * divergence * (all_of - p[i, label]))
    outcome = method.outcome(model, made)
    formula = torch.stack(rows)
    if guards:
        assert_same_gradients(model, outcome.loss.mean(), formula.mean())
    else:
        # log(1.0001 - r) is log(1 - r) except for 1e-4 / (1 - r), and p_y >= 0 was enlarged by 1e-7.
        slack = 1e-4 / (1 - q.scatter(1, y.view(-1, 1), 0).amax(1)) + 1e-5
        assert ((outcome.loss - formula).abs() <= slack).all()
    assert torch.equal(outcome.clean, p.argmax(1) == y)
    assert torch.equal(outcome.robust, q.argmax(1) == y)


def test_the_bisected_margin_is_that_of_a_linear_network(
    tiny_config: Callable[..., TrainConfig],
) -> None:
    """Between two classes of a linear network: |w x + b| / ||w||_1."""
    generator = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(20, 1, 6, 6, generator=generator)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 36, generator=generator))
        net[1].bias.sub_(net(x).mean(0))
    y = net(x).argmax(1)
    difference = net[1].weight[0] - net[1].weight[1]
    logits = net(x).detach()
    expected = (logits[:, 0] - logits[:, 1]).abs() / difference.abs().sum()
    d_max = 0.015
    assert 0 < (expected > 1.05 * d_max).sum() < 20
    config = tiny_config(method="mma", baseline={"mma_d_max": d_max, "mma_d_min": 0.01})
    memory = make_memory(config, 20, CPU)
    made = METHODS["mma"](config, net, memory).prepare(x, y, torch.arange(20), epoch=0, seed=0)
    found = memory.values
    # The tenth halving of [0, 1.05 d_max] leaves an interval of that over 2**10 round the result.
    resolution = 1.05 * d_max / 2**10
    assert (found - expected.clamp(max=1.05 * d_max)).abs().max() <= resolution + 1e-6
    assert torch.equal(made.counted, found < d_max)
    moved = (made.x_adv - x).abs().flatten(1)
    torch.testing.assert_close(moved.amax(1), found, atol=1e-6, rtol=0)


def test_bisection_looks_first_where_it_is_told() -> None:
    """With a steady margin function the result does not depend on it by more than the resolution."""
    from iaat_fast.attacks import PGD

    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([1])
    shifted = nn.Sequential(net, _Shift(0.2))  # tips over at x = 0.2, a distance of 0.3
    for first in (0.01, 0.3, 0.5):
        margin = bisected_margin(
            PGD(shifted), x, y, -torch.ones_like(x), torch.tensor([first]), most=0.5, steps=12
        )
        assert margin.item() == pytest.approx(0.3, abs=0.5 / 2**11)


class _Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Tensor) -> Tensor:
        return logits - torch.tensor([0.0, self.by])


def test_mma_is_its_formula(make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Ding et al. 2020, by sets of samples as the paper has them."""
    x, y = batch[0], batch[1].clone()
    y[:3] = (y[:3] + 1) % 3  # of which the network knows nothing
    method = make("mma", baseline={"mma_d_max": 0.14, "mma_d_min": 0.02, "mma_clean_weight": 0.25})
    made = prepared(method, (x, y))
    assert isinstance(made, Margins)
    margins = method.memory.values[INDEX]
    right = model(x).softmax(1).gather(1, y.view(-1, 1))[:, 0] > 0.5
    wide = right & (margins >= 0.14)
    assert 0 < int(right.sum()) < 12
    assert 0 < int(wide.sum()) < int(right.sum())
    assert torch.equal(made.x_adv[~right], x[~right])
    assert torch.equal(margins == 0, ~right)
    assert (method.memory.values[12:] == torch.tensor(0.02)).all()

    clean = sum(F.cross_entropy(model(x), y, reduction="none"))
    narrow = right & (margins < 0.14)
    at_margin = sum(F.cross_entropy(model(made.x_adv[narrow]), y[narrow], reduction="none"))
    wrong = sum(F.cross_entropy(model(x[~right]), y[~right], reduction="none"))
    formula = (0.25 * clean + 0.75 * (at_margin + wrong)) / 12
    assert_same_gradients(model, method.outcome(model, made).loss.mean(), formula)

    p = model(made.x_adv).softmax(1).gather(1, y.view(-1, 1))[:, 0]
    assert ((p - 0.5).abs()[narrow] < 0.01).all(), "at the margin the odds are even"


def test_mma_attacks_at_the_radius_of_the_last_visit(
    make: Make, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("mma", baseline={"mma_d_max": 0.2, "mma_d_min": 0.05, "mma_step_scale": 2.0})
    radii: list[Tensor] = []
    original = type(method.attack).__call__

    def recording(self: Any, *args: Any, **keywords: Any) -> Tensor:
        radii.append(keywords["eps"].clone())
        return original(self, *args, **keywords)

    monkeypatch.setattr(type(method.attack), "__call__", recording)
    prepared(method, batch)
    found = method.memory.values[INDEX].clone()
    right = found > 0
    prepared(method, batch, seed=12)
    assert torch.equal(radii[0], torch.where(right, 0.05, 0.0))
    assert torch.equal(radii[1], torch.where(right, found.clamp(0.05, 1.05 * 0.2), 0.0))
    step = method.attack.alpha
    assert callable(step)
    torch.testing.assert_close(step(radii[1]), 2.0 * radii[1] / 3)


@pytest.mark.parametrize("loss", ["ce", "mix"])
def test_cat_is_its_formula(
    loss: str, make: Make, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """Cheng et al. 2022, Algorithm 1, with the cross-entropy or the mixed loss."""
    eta, eps_max, c, kappa = 0.03, 0.25, 3.0, 1.0
    fields = {"eta": eta, "eps_max": eps_max, "c": c, "kappa": kappa, "loss": loss}
    x, y = batch[0], batch[1].clone()
    y[3:5] = (y[3:5] + 1) % 3  # of which the network knows nothing
    method = make("cat", baseline={f"cat_{name}": value for name, value in fields.items()})
    old = torch.linspace(0, eps_max, 12)
    method.memory.store(INDEX, old)
    made = prepared(method, (x, y))
    assert isinstance(made, Smoothed)
    onehot = F.one_hot(y, 3).double()

    def losses(images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        entropy = -(labels * logits.log_softmax(1)).sum(1)
        rival = logits.masked_fill(onehot.bool(), -torch.inf).amax(1)
        margin = (rival - logits.gather(1, y.view(-1, 1))[:, 0]).clamp(min=-kappa)
        return entropy + margin if loss == "mix" else entropy

    # The attack, from x, within the radius that is tried and against the label of the radius that is stored.
    tried = (old + eta).clamp(max=eps_max)
    first = method.attack.labels
    x_adv = plain_attack(
        lambda a: losses(a, first).sum(), x, x, eps=tried.double().view(-1, 1, 1, 1)
    )
    torch.testing.assert_close(made.x_adv, x_adv, rtol=0, atol=1e-7)

    right = model(made.x_adv).argmax(1) == y
    assert 0 < int(right.sum()) < 12
    new = method.memory.values[INDEX]
    assert torch.equal(new, torch.where(right, tried, old))
    assert (method.memory.values[12:] == 0).all()

    drawn = []
    for labels, eps in ((first, old), (made.labels, new)):
        share = c * eps.double().view(-1, 1)
        drawn.append(((labels - (1 - share) * onehot) / share)[1:])  # of a radius of 0 nothing is
        torch.testing.assert_close(drawn[-1].sum(1), torch.ones(11).double(), rtol=0, atol=1e-6)
        assert (drawn[-1] > -1e-6).all()
    assert torch.equal(first[0], onehot[0])
    assert (drawn[0] - drawn[1]).abs().amax(1).min() > 1e-3, "another label for the update"

    outcome = method.outcome(model, made)
    assert_same_gradients(model, outcome.loss.mean(), losses(made.x_adv, made.labels).mean())
    assert torch.equal(outcome.robust, right)
    assert torch.equal(outcome.clean, model(x).argmax(1) == y)
    if loss == "mix":
        margin = attack_losses.value("cw", model(made.x_adv), y, targeted=False)
        assert 0 < int((margin > -kappa).sum()) < 12, "kappa tells the samples apart"


def test_cat_follows_the_seed_and_the_sample(make: Make, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch

    def radii_and_labels(rows: slice, seed: int) -> tuple[Tensor, Tensor]:
        method = make("cat")
        method.memory.values.fill_(0.1)
        made = method.prepare(x[rows], y[rows], INDEX[rows], epoch=0, seed=seed)
        assert isinstance(made, Smoothed)
        return method.memory.values[INDEX[rows]], made.labels

    whole = radii_and_labels(slice(0, 12), 11)
    assert all(map(torch.equal, whole, radii_and_labels(slice(0, 12), 11)))
    part = radii_and_labels(slice(5, 9), 11)
    assert all(torch.equal(each[5:9], other) for each, other in zip(whole, part, strict=True))
    assert not torch.equal(whole[1], radii_and_labels(slice(0, 12), 12)[1])


def test_labels_are_drawn_uniformly_from_the_simplex() -> None:
    draws = dirichlet(torch.zeros(3000, 5), torch.arange(3000), torch.tensor([3]), times=2)
    assert draws.shape == (2, 3000, 5)
    # A coordinate of Dirichlet(1, 1, 1, 1, 1) is Beta(1, 4); the first two together are Beta(2, 3).
    for each in draws.double().numpy():
        assert stats.kstest(each[:, 2], stats.beta(1, 4).cdf).pvalue > 1e-3
        assert stats.kstest(each[:, :2].sum(1), stats.beta(2, 3).cdf).pvalue > 1e-3
    assert stats.pearsonr(draws[0, :, 0], draws[1, :, 0]).pvalue > 1e-3


def test_cat_refuses_labels_that_would_be_negative_and_classes_that_are_not_there(
    make: Make, batch: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"baseline\.cat_c: 6, expected at most .*, 5$"):
        make("cat", baseline={"cat_c": 6.0, "cat_eps_max": 0.2})
    make("mart", baseline={"cat_c": 6.0, "cat_eps_max": 0.2})
    with pytest.raises(ValueError, match="y: 3, expected a class in 0"):
        prepared(make("cat"), (batch[0], batch[1] + 1))


@pytest.mark.parametrize("name", ["mixup", "trades", "mart", "mma", "cat"])
def test_no_sample_is_no_work(name: str, make: Make, batch: tuple[Tensor, Tensor]) -> None:
    """A rank of a distributed run may get nothing of a last batch."""
    (x, y), method = batch, make(name)
    made = method.prepare(x[:0], y[:0], INDEX[:0], epoch=0, seed=0)
    assert made.x_adv.shape == x[:0].shape


@pytest.mark.parametrize("name", ["mixup", "trades", "mart", "mma", "cat"])
def test_a_step_moves_the_weights_and_sums_the_loss(
    name: str,
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
) -> None:
    config, net = tiny_config(method=name), tiny_model()
    step = TrainingStep(
        config,
        net,
        make_memory(config, 24, CPU),
        torch.optim.SGD(net.parameters(), lr=0.05),
        CPU,
    )
    x, y = fetch(tiny_data.train, INDEX)
    before = net[-1].weight.detach().clone()
    loss = step(GlobalBatch.of(x, y, INDEX), epoch=0, seed=0)
    assert math.isfinite(loss.item())
    assert not torch.equal(before, net[-1].weight)
    assert step.totals[0].item() == pytest.approx(12 * loss.item())
    forwards = {"cat": 1}.get(name, 2)  # of training: clean and attacked, or attacked alone
    assert net[1].num_batches_tracked == forwards
