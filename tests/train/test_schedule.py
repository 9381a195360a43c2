"""The learning rate: scaled with the batch, rising step by step, decaying at the epochs of the tables."""

from __future__ import annotations

import itertools

import pytest

from iaat_fast.train.config import OptimConfig
from iaat_fast.train.optim import learning_rate
from iaat_fast.train.presets import preset


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
