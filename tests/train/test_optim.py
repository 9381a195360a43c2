"""The learning rate over a run; on the device it takes the steps of one on the host, with the same checkpoints."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from iaat_fast.train.config import OptimConfig
from iaat_fast.train.optim import (
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    rate_on_device,
    set_rate,
)
from iaat_fast.train.presets import preset

CONFIG = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01)


def steps(model: nn.Module, optimizer: torch.optim.SGD, rates: list[float], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for rate in rates:
        set_rate(optimizer, rate)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


@pytest.fixture
def pair(
    tiny_model: Callable[[], nn.Module],
) -> tuple[tuple[nn.Module, torch.optim.SGD], tuple[nn.Module, torch.optim.SGD]]:
    """The same network twice, its learning rate on the host and on the device."""
    host, device = tiny_model(), tiny_model()
    return (
        (host, make_optimizer(host, CONFIG, on_device=False)),
        (device, make_optimizer(device, CONFIG, on_device=True)),
    )


Pair = tuple[tuple[nn.Module, torch.optim.SGD], tuple[nn.Module, torch.optim.SGD]]


def assert_close(pair: Pair) -> None:
    """Up to float32's rounding of five sums a step, of numbers of about 1."""
    for one, other in zip(pair[0][0].parameters(), pair[1][0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5 * 4 * 2**-24 * 4)


def test_the_steps_are_the_same(pair: Pair) -> None:
    assert [rate_on_device(optimizer) for _, optimizer in pair] == [False, True]
    for model, optimizer in pair:
        steps(model, optimizer, [0.1, 0.1, 0.02, 0.0])
    assert_close(pair)


def test_the_first_step_is_that_of_momentum_begun_with_the_gradient(pair: Pair) -> None:
    """0.9 * 0 + g is g: there is nothing to round."""
    for model, optimizer in pair:
        steps(model, optimizer, [0.1])
    buffers = [[state["momentum_buffer"] for state in o.state.values()] for _, o in pair]
    for one, other in zip(*buffers, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-22, atol=2**-24)  # an fma, or none


@pytest.mark.parametrize("way", [(0, 1), (1, 0)])
def test_a_checkpoint_of_one_is_one_of_the_other(pair: Pair, way: tuple[int, int]) -> None:
    first, second = pair[way[0]], pair[way[1]]
    steps(*first, [0.1, 0.05])
    saved = copy.deepcopy(optimizer_state(first[1]))  # as from a file
    (group,) = saved["param_groups"]
    assert isinstance(group["lr"], float)
    assert group["fused"] is None
    before = rate_on_device(second[1])
    load_optimizer_state(second[1], saved)
    second[0].load_state_dict(first[0].state_dict())
    assert rate_on_device(second[1]) == before
    assert float(second[1].param_groups[0]["lr"]) == pytest.approx(0.05)
    for model, optimizer in pair:
        steps(model, optimizer, [0.05, 0.01], seed=1)
    assert_close(pair)


def test_a_weight_may_get_its_first_gradient_late(pair: Pair) -> None:
    for model, optimizer in pair:
        steps(model, optimizer, [0.1])
        optimizer.zero_grad()
        late = nn.Parameter(torch.ones(3))
        optimizer.param_groups[0]["params"].append(late)
        if rate_on_device(optimizer):
            load_optimizer_state(optimizer, optimizer_state(optimizer))
        late.grad = torch.ones(3)
        optimizer.step()
        torch.testing.assert_close(late.detach(), torch.full((3,), 1 - 0.1 * 1.01))


def test_table_8_rises_from_0_1_to_the_scaled_rate_and_decays() -> None:
    optim = preset("imagenet-resnet50").optim
    assert learning_rate(optim, 0) == pytest.approx(0.1)
    assert learning_rate(optim, 2, 0.5) == pytest.approx((0.1 + 0.8) / 2)
    assert learning_rate(optim, 5) == pytest.approx(0.8)
    rates = [learning_rate(optim, epoch) for epoch in (34, 35, 70, 95, 109)]
    assert rates == pytest.approx([0.8, 0.08, 0.008, 0.0008, 0.0008])


def test_every_step_of_the_warm_up_adds_the_same() -> None:
    optim = OptimConfig(batch_size=1024, lr_reference_batch=256, lr_warmup_epochs=2)
    rates = [learning_rate(optim, step // 4, step % 4 / 4) for step in range(9)]
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == pytest.approx([0.3 / 8] * 8)


def test_a_batch_below_the_reference_is_scaled_and_has_nothing_to_rise_to() -> None:
    optim = OptimConfig(batch_size=64, lr_reference_batch=256, lr_warmup_epochs=5)
    assert learning_rate(optim, 0) == learning_rate(optim, 7) == pytest.approx(0.025)


def test_cosine_is_that_of_torch() -> None:
    optim = OptimConfig(lr=0.2, epochs=3, lr_schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    for step in range(12):
        assert learning_rate(optim, step // 4, step % 4 / 4) == pytest.approx(
            torchs.get_last_lr()[0]
        )
        optimizer.step()
        torchs.step()


def test_one_cycle_rises_to_the_full_rate_after_two_fifths_and_falls_to_0() -> None:
    optim = OptimConfig(lr=0.2, epochs=10, lr_schedule="one-cycle")
    rates = [learning_rate(optim, step // 2, step % 2 / 2) for step in range(20)]
    assert rates == pytest.approx(
        [0.025 * i for i in range(8)] + [0.2 * i / 12 for i in range(12, 0, -1)]
    )


def test_a_rate_over_the_epochs_planned_is_scaled_and_warmed_up_as_any_other() -> None:
    scaled = {"batch_size": 512, "lr_reference_batch": 256, "lr_warmup_epochs": 2, "epochs": 4}
    step = OptimConfig(**scaled, decay_epochs=())
    cosine = OptimConfig(**scaled, lr_schedule="cosine")
    for epoch, share in enumerate((1, (1 + 0.5**0.5) / 2, 0.5)):
        assert learning_rate(cosine, epoch) == pytest.approx(learning_rate(step, epoch) * share)
