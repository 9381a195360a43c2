"""Adversarial weight perturbation: its step is that of the released code, and it leaves no trace in the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.data import ImageData, fetch
from iaat_fast.methods import NAMES, reads
from iaat_fast.plan.estimate import phases
from iaat_fast.train import awp
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.methods import METHODS, Batch
from iaat_fast.train.methods.passes import Fooled
from iaat_fast.train.optim import never_reached
from iaat_fast.train.overrides import override
from iaat_fast.train.presets import preset
from iaat_fast.train.step import TrainingStep, make_memory
from tests.train.same_run import Fit, assert_same_run

CPU = torch.device("cpu")
INDEX = torch.arange(12)
GAMMA = 0.05
BASELINE = {"awp_gamma": GAMMA}
SGD: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}

Model = Callable[[], nn.Module]
Config = Callable[..., TrainConfig]


def batch_of(data: ImageData) -> GlobalBatch:
    x, y = fetch(data.train, INDEX)
    return GlobalBatch.of(x.double(), y, INDEX)


def step_of(config: TrainConfig, model: nn.Module) -> TrainingStep:
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    return TrainingStep(config, model, make_memory(config, 24, CPU), optimizer, CPU)


def released_loss(method: str, model: nn.Module, made: Batch, config: TrainConfig) -> Tensor:
    if method == "adv":
        return F.cross_entropy(model(made.x_adv), made.y)
    clean, attacked = model(made.x), model(made.x_adv)
    divergence = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, made.y) + config.baseline.trades_beta * divergence


@pytest.mark.parametrize("method", ["adv", "trades"])
def test_a_step_is_that_of_the_released_code(
    method: str, tiny_config: Config, tiny_model: Model, tiny_data: ImageData
) -> None:
    """Wu et al. take a step of gradient ascent on a copy, and add its change, scaled by tensor, to the weights."""
    config = tiny_config(method=method, baseline=BASELINE)
    ours, batch = tiny_model().double(), batch_of(tiny_data)
    model, proxy = copy.deepcopy(ours), copy.deepcopy(ours).train()
    x, y = batch.images()
    made = METHODS[method](config, model, make_memory(config, 24, CPU)).prepare(
        x, y, INDEX, epoch=1, seed=11
    )
    torch.manual_seed(3)
    step_of(config, ours)(batch, epoch=1, seed=11)

    torch.manual_seed(3)
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-released_loss(method, proxy, made, config)).backward()
    ascent.step()
    moves = {}
    for (name, old), new in zip(model.named_parameters(), proxy.parameters(), strict=True):
        if old.dim() > 1 and "weight" in name:
            change = (new - old).detach()
            moves[name] = GAMMA * old.detach().norm() / (change.norm() + 1e-20) * change
    assert len(moves) == 2
    weights = dict(model.named_parameters())
    for name, move in moves.items():
        weights[name].data.add_(move)
    model.train()
    released_loss(method, model, made, config).backward()
    for name, move in moves.items():
        weights[name].data.sub_(move)
    torch.optim.SGD(model.parameters(), **SGD).step()

    for (name, found), expected in zip(
        ours.state_dict().items(), model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("method", NAMES)
def test_every_method_that_attacks_takes_another_step_with_it(
    method: str, tiny_config: Config, tiny_model: Model, tiny_data: ImageData
) -> None:
    ends = []
    for gamma in (0.0, GAMMA):
        model = tiny_model().double()
        config = tiny_config(method=method)
        config = override(config, {"baseline": {"awp_gamma": gamma}})
        torch.manual_seed(0)
        step_of(config, model)(batch_of(tiny_data), epoch=1, seed=1)
        ends.append(model)
    weights = [dict(model.named_parameters()) for model in ends]
    for name, plain in weights[0].items():
        assert torch.equal(plain, weights[1][name]) is not reads(method, "baseline.awp_gamma")
        torch.testing.assert_close(plain, weights[1][name], rtol=0.2, atol=0.05)  # it is a step


def test_each_tensor_moves_by_its_share_along_its_gradient_and_comes_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model[3].weight.requires_grad_(False)
    model(torch.rand(5, 1, 6, 6)).square().sum().backward()
    before = copy.deepcopy(model.state_dict())
    with awp.perturbed(model, GAMMA):
        change = (model[0].weight - before["0.weight"]).detach()
        gradient = model[0].weight.grad
        assert change.norm().item() == pytest.approx(GAMMA * before["0.weight"].norm().item())
        cosine = F.cosine_similarity(change.flatten(), gradient.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-5)
        for name in ("0.bias", "1.weight", "1.bias", "3.weight", "3.bias"):
            assert torch.equal(model.state_dict()[name], before[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_without_weights_of_two_dimensions_stays_as_it_is() -> None:
    model = nn.BatchNorm1d(3)
    model(torch.rand(4, 3)).square().sum().backward()
    before = copy.deepcopy(model.state_dict())
    with awp.perturbed(model, GAMMA):
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_gradient_of_zeros_moves_nothing() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros(2, 3)
    with awp.perturbed(model, GAMMA):
        assert torch.equal(model.weight, before)


def test_an_error_at_the_perturbed_weights_leaves_those_of_before(
    tiny_config: Config, tiny_model: Model, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model().double()
    step = step_of(tiny_config(method="adv", baseline=BASELINE), model)
    before = copy.deepcopy(dict(model.named_parameters()))
    outcome, calls = step.method.outcome, []

    def second_fails(*args: Any) -> Any:
        calls.append(model[0].weight.detach().clone())
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return outcome(*args)

    monkeypatch.setattr(step.method, "outcome", second_fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        step(batch_of(tiny_data), epoch=1, seed=1)
    assert torch.equal(calls[0], before["0.weight"])
    assert not torch.equal(calls[1], before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_batchnorm_counts_the_forward_at_the_perturbed_weights_alone(
    tiny_config: Config, tiny_model: Model, tiny_data: ImageData
) -> None:
    model = tiny_model().double()
    step_of(tiny_config(method="adv", baseline=BASELINE), model)(
        batch_of(tiny_data), epoch=1, seed=1
    )
    assert model[1].num_batches_tracked == 1


def test_micro_batches_share_the_perturbation_of_the_whole_batch(
    tiny_config: Config, tiny_data: ImageData
) -> None:
    """Without BatchNorm and dropout they differ by the order of summation alone."""
    ends = []
    for parts in (1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Softplus(), nn.Linear(8, 3))
        config = tiny_config(method="trades", baseline=BASELINE, optim={"accumulate": parts})
        step_of(config, model.double())(batch_of(tiny_data), epoch=1, seed=1)
        ends.append(list(model.parameters()))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_gradient_that_overflows_fp16_perturbs_nothing_and_the_step_is_left_out(
    tiny_config: Config, tiny_data: ImageData
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    config = tiny_config(method="adv", baseline=BASELINE, optim={"amp": "fp16"})
    step = step_of(config, model)
    before = model[1].weight.detach().clone()
    x, y = fetch(tiny_data.train, INDEX)
    step.update.amp._scaler.load_state_dict({**step.update.amp.state_dict(), "scale": 2.0**30})
    mean = step(GlobalBatch.of(x, y, INDEX), epoch=1, seed=1)
    assert torch.isfinite(mean), "read as a divergence"
    assert torch.equal(model[1].weight, before)
    assert step.update.amp.state_dict()["scale"] == 2.0**29


def test_a_run_with_a_warm_up_is_resumed_with_the_same_bits(
    tmp_path: Path, tiny_config: Config, tiny_fit: Fit
) -> None:
    def run(name: str, warmup: int, epochs: int) -> TrainConfig:
        baseline = {**BASELINE, "awp_warmup_epochs": warmup}
        return tiny_config(
            tmp_path / name, method="adv", baseline=baseline, optim={"epochs": epochs}
        )

    whole = tiny_fit(run("whole", 1, 2))
    tiny_fit(run("resumed", 1, 1))
    assert_same_run(whole.folder, tiny_fit(run("resumed", 1, 2), resume=True).folder)
    first, second = tiny_fit(run("never", 2, 2)).metrics
    assert whole.metrics[0]["train_loss"] == first["train_loss"]
    assert whole.metrics[1]["train_loss"] > second["train_loss"], (
        "the loss at the perturbed weights"
    )


def test_a_plan_has_its_epochs_and_passes(tiny_config: Config) -> None:
    late = {**BASELINE, "awp_warmup_epochs": 2}
    adv = tiny_config(method="adv", baseline=late)
    assert phases(adv) == {"before AWP": 2, "with AWP": 1}
    assert phases(tiny_config(baseline=late)) == {
        "warm-up, before AWP": 1,
        "adaptive, before AWP": 1,
        "adaptive, with AWP": 1,
    }
    assert phases(tiny_config(method="adv", baseline=BASELINE)) == {"with AWP": 3}
    for method in ("adv", "trades"):
        config = tiny_config(method=method, baseline=BASELINE)
        before, after = (awp.passes(config, name, Fooled()) for name in ("before AWP", "with AWP"))
        updates = [stage.passes for stage in after if stage.kind == "update"]
        assert after[:-1] == before
        assert updates == [updates[0]] * 2


def test_what_has_no_effect_is_refused_or_warned_of(tiny_config: Config) -> None:
    with pytest.raises(ValueError, match=r"awp_warmup_epochs: 3, expected 0, or baseline\.awp_gam"):
        preset("digits", method="adv", baseline={"awp_warmup_epochs": 3})
    with pytest.raises(ValueError, match=r"awp_gamma is 0.1: not read by method 'clean', expected"):
        preset("digits", method="clean", baseline={"awp_gamma": 0.1})
    with pytest.raises(ValueError, match=r"baseline\.awp_gamma: -1, expected a number >= 0"):
        preset("digits", method="adv", baseline={"awp_gamma": -1})
    late = tiny_config(method="adv", baseline={**BASELINE, "awp_warmup_epochs": 3})
    (line,) = never_reached(override(late, {"optim": {"decay_epochs": (2,)}}))
    assert "awp_warmup_epochs is 3 and optim.epochs 3" in line
