"""What one training step does under each method and each row of the protocol table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.data import ImageData, fetch
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.methods.attack import make_attack
from iaat_fast.train.step import TrainingStep, make_memory

CPU = torch.device("cpu")
INDEX = torch.arange(12)


class Case:
    """A training step on 12 of 24 samples that records what it trains on."""

    def __init__(self, config: TrainConfig, model: nn.Module, data: ImageData) -> None:
        self.config = config
        self.model = model
        self.memory = make_memory(config, len(data.train), CPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        self.step = TrainingStep(config, model, self.memory, optimizer, CPU)
        self.x, self.y = fetch(data.train, INDEX)
        self.inputs: list[Tensor] = []
        model.register_forward_pre_hook(
            lambda module, args: self.inputs.append(args[0].detach().clone())
        )

    def run(self, *, epoch: int) -> tuple[Tensor, Tensor]:
        """One step; returns the images the network was trained on and which samples were S+."""
        logits: list[Tensor] = []
        original = self.step.method.attack.logits

        def recording(x: Tensor) -> Tensor:
            logits.append(original(x))
            return logits[-1]

        self.step.method.attack.logits = recording
        self.step(GlobalBatch.of(self.x, self.y, INDEX), epoch=epoch, seed=11)
        # In the paper's protocol the clean images are the last ones of the candidates' forward.
        batch_statistics = self.step.method.attack.bn != "eval"
        correct = torch.ones(12, dtype=torch.bool)
        if logits:
            clean = logits[0] if batch_statistics else logits[0][-12:]
            correct = clean.argmax(dim=1) == self.y
        return self.inputs[-1], correct

    def run_mixed(self, *, epoch: int) -> tuple[Tensor, Tensor]:
        """As `run`, where both S+ and S- occur."""
        trained, correct = self.run(epoch=epoch)
        assert 0 < correct.sum() < len(correct)
        return trained, correct


@pytest.fixture
def case(
    tiny_config: Callable[..., TrainConfig],
    tiny_model: Callable[[], nn.Module],
    tiny_data: ImageData,
) -> Callable[..., Case]:
    def make(**changes: Any) -> Case:
        return Case(tiny_config(**changes), tiny_model(), tiny_data)

    return make


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The L-infinity distance of each sample."""
    return (a - b).abs().flatten(1).amax(dim=1)


def test_clean_trains_on_the_images_as_they_are(case: Callable[..., Case]) -> None:
    it = case(method="clean")
    trained, _ = it.run(epoch=0)
    assert torch.equal(trained, it.x)
    assert torch.equal(it.memory.values, torch.zeros(24))


@pytest.mark.parametrize("epoch", [0, 5])
def test_adv_attacks_every_sample_at_the_fixed_radius(
    case: Callable[..., Case], epoch: int
) -> None:
    it = case(method="adv")
    assert (it.step.method.attack.logits(it.x).argmax(dim=1) != it.y).any()
    trained, _ = it.run(epoch=epoch)
    moved = distance(trained, it.x)
    assert (moved > 0.1).all(), "misclassified samples are attacked too"
    assert (moved <= 0.2 + 1e-6).all()
    assert torch.equal(it.memory.values, torch.full((24,), 0.2))


def test_paper_warm_up_attacks_at_eps_w_and_trains_the_misclassified_clean(
    case: Callable[..., Case],
) -> None:
    it = case(protocol="paper")
    trained, correct = it.run_mixed(epoch=0)
    assert torch.equal(trained[~correct], it.x[~correct])
    moved = distance(trained, it.x)[correct]
    assert (moved > 0.1).all()
    assert (moved <= 0.2 + 1e-6).all()
    visited = torch.zeros(24)
    visited[INDEX] = 0.2
    assert torch.equal(it.memory.values, visited)


def test_released_warm_up_gives_the_misclassified_radius_0(case: Callable[..., Case]) -> None:
    it = case(protocol="released")
    it.memory.load(torch.full((24,), 0.07))
    trained, correct = it.run_mixed(epoch=0)
    expected = torch.full((24,), 0.07)
    expected[INDEX] = torch.where(correct, 0.2, 0.0)
    assert torch.equal(it.memory.values, expected)
    assert torch.equal(trained[~correct], it.x[~correct])
    assert (distance(trained, it.x)[correct] > 0.1).all()


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_the_warm_up_lasts_while_the_epoch_index_is_below_its_length(
    case: Callable[..., Case], protocol: str
) -> None:
    changes = {"protocol": protocol, "epsilon": {"warmup_epochs": 2}}
    within, after = case(**changes), case(**changes)
    within.run_mixed(epoch=1)
    assert within.memory.values.max() == pytest.approx(0.2)
    after.run(epoch=2)
    assert after.memory.values.max() <= 0.1 * 0.05 + 1e-7  # one visit moves by beta * gamma


def test_without_warm_up_the_memory_starts_at_0_and_adapts_at_once(
    case: Callable[..., Case],
) -> None:
    it = case(epsilon={"warmup_epochs": 0})
    assert torch.equal(it.memory.values, torch.zeros(24))
    it.run(epoch=0)
    assert it.memory.values.max() <= 0.1 * 0.05 + 1e-7
    assert (it.memory.values[12:] == 0).all()


def test_paper_radii_of_the_misclassified_follow_algorithm_2_and_they_are_trained_clean(
    case: Callable[..., Case],
) -> None:
    it = case(protocol="paper")
    it.memory.load(torch.full((24,), 0.2))
    trained, correct = it.run_mixed(epoch=1)
    # Misclassified under no attack, so under the two attacks as well: both candidates fail.
    lowered = 0.9 * 0.2 + 0.1 * (0.2 - 0.05)
    assert torch.allclose(it.memory.values[INDEX][~correct], torch.tensor(lowered))
    assert torch.equal(trained[~correct], it.x[~correct])
    assert (distance(trained, it.x)[correct] > 0).all()


def test_released_radii_of_the_misclassified_shrink_and_they_are_trained_attacked(
    case: Callable[..., Case],
) -> None:
    it = case(protocol="released")
    it.memory.load(torch.full((24,), 0.2))
    trained, correct = it.run_mixed(epoch=1)
    assert torch.allclose(it.memory.values[INDEX][~correct], torch.tensor(0.9 * 0.2))
    moved = distance(trained, it.x)[~correct]
    assert (moved > 0.05).all()
    assert (moved <= 0.9 * 0.2 + 1e-6).all()


@pytest.mark.parametrize(("protocol", "expected"), [("paper", 0.0), ("released", 0.9 * 0.004)])
def test_where_a_radius_is_held_at_0(
    case: Callable[..., Case], protocol: str, expected: float
) -> None:
    it = case(protocol=protocol, epsilon={"misclassified": "algorithm2"}, attack={"bn": "eval"})
    it.memory.load(torch.full((24,), 0.004))
    _, correct = it.run_mixed(epoch=1)
    # Both candidates fail: eps - gamma < 0. On the result: 0.004 - 0.1 * 0.05 < 0, so 0. On the
    # candidate: it is 0, and smoothing leaves 0.9 * 0.004.
    values = it.memory.values[INDEX][~correct]
    assert torch.allclose(values, torch.tensor(expected), atol=1e-8)


def test_a_lower_bound_holds_after_selection(case: Callable[..., Case]) -> None:
    it = case(epsilon={"eps_min": 4 / 255})
    it.run(epoch=1)
    assert torch.allclose(it.memory.values[INDEX], torch.tensor(4 / 255))


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_batchnorm_sees_only_the_training_forward(case: Callable[..., Case], bn: str) -> None:
    it = case(attack={"bn": bn}, epsilon={"strategy": "sequential"})
    it.run(epoch=1)
    assert it.model[1].num_batches_tracked == 1


def test_released_attacks_update_the_batchnorm_statistics(case: Callable[..., Case]) -> None:
    it = case(protocol="released", attack={"steps": 10})
    it.run(epoch=1)
    # The clean forward, two candidates of 10 steps and a verdict each, 10 final steps, training.
    assert it.model[1].num_batches_tracked == 1 + 2 * 11 + 10 + 1


def test_step_size_rules(tiny_config: Callable[..., TrainConfig]) -> None:
    eps = torch.tensor([0.0, 0.1, 0.5])
    scaled = tiny_config(attack={"alpha_rule": "scaled", "steps": 10, "alpha": 2 / 255})
    fixed = tiny_config(attack={"alpha_rule": "fixed", "alpha": 2 / 255})
    rule = make_attack(scaled.attack, nn.Identity()).alpha
    assert torch.allclose(rule(eps), torch.tensor([2 / 255, 0.1 / 5, 0.5 / 5]))
    assert make_attack(fixed.attack, nn.Identity()).alpha == 2 / 255


@pytest.mark.parametrize("clamp", [True, False])
def test_the_random_start_is_clamped_as_asked(
    tiny_config: Callable[..., TrainConfig], clamp: bool
) -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    attack = make_attack(tiny_config(attack={"clamp_start": clamp}).attack, model)
    x = torch.zeros(8, 1, 6, 6)
    attack(x, torch.zeros(8, dtype=torch.int64), seed=0)
    assert (seen[0].min() >= 0) == clamp


def test_the_same_seed_gives_the_same_step_and_another_does_not(
    case: Callable[..., Case],
) -> None:
    def weights(seed: int) -> Tensor:
        it = case(method="adv")
        torch.manual_seed(3)
        it.step(GlobalBatch.of(it.x, it.y, INDEX), epoch=0, seed=seed)
        return it.model[-1].weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("method", ["clean", "adv", "iaat"])
def test_the_weights_move_and_the_loss_is_the_mean_cross_entropy(
    case: Callable[..., Case], method: str
) -> None:
    it = case(method=method)
    before = it.model[-1].weight.detach().clone()
    loss = it.step(GlobalBatch.of(it.x, it.y, INDEX), epoch=1, seed=0)
    assert not torch.equal(before, it.model[-1].weight)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert it.step.totals[0].item() == pytest.approx(12 * loss.item())


def test_iaat_counts_s_plus_and_those_of_it_that_withstand(case: Callable[..., Case]) -> None:
    it = case(epsilon={"warmup_epochs": 1})
    _, correct = it.run_mixed(epoch=0)
    _, clean, robust, seen = it.step.totals.tolist()
    assert clean == correct.sum()
    assert 0 <= robust <= clean
    assert seen == 12


def test_the_attack_takes_its_gradients_as_configured(
    tiny_config: Callable[..., TrainConfig], tiny_model: Callable[[], nn.Module]
) -> None:
    network = make_attack(
        tiny_config(attack={"precision": "bf16", "engine": "exact"}).attack, tiny_model()
    ).network
    assert (network.precision, network.engine) == ("bf16", "exact")
