"""What a training step spends outside the network's own forward and backward passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast import models, ops
from iaat_fast.data import Split
from iaat_fast.train import preset
from iaat_fast.train.step import TrainingStep, make_memory

STEPS = 3


class Stopwatch:
    """Seconds spent inside wrapped calls, outermost ones only."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        return timed


def test_share_outside_the_network(
    benchmark: Any, record: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """cifar10-resnet18, one warm-up step of IAAT: the step with the fewest passes, so the largest share outside.

    Fetching, augmentation, random start, cotangents, fused steps, the memory and the optimizer are outside.
    """
    config = preset("cifar10-resnet18")
    size, batch = STEPS * config.optim.batch_size, config.optim.batch_size
    generator = torch.Generator().manual_seed(0)
    split = Split(
        torch.randint(256, (size, 32, 32, 3), generator=generator, dtype=torch.uint8),
        torch.randint(10, (size,), generator=generator),
    )
    model = models.build("resnet18")
    memory = make_memory(config, size, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=0.9)
    step = TrainingStep(config, model, memory, optimizer, torch.device("cpu"))

    network = Stopwatch()
    model.forward = network.wrap(model.forward)  # type: ignore[method-assign]
    monkeypatch.setattr(torch.autograd, "grad", network.wrap(torch.autograd.grad))
    monkeypatch.setattr(torch.Tensor, "backward", network.wrap(torch.Tensor.backward))

    def one_step(number: int) -> float:
        """Run a step; the share of its time outside the network."""
        network.seconds, start = 0.0, time.perf_counter()
        index = torch.arange(number * batch, (number + 1) * batch)
        x = ops.random_crop_flip(split.images, index, seed=number)
        step(x, split.labels[index], index, epoch=0, seed=number)
        return 1 - network.seconds / (time.perf_counter() - start)

    model(torch.rand(2, 3, 32, 32))
    shares = [one_step(number) for number in range(STEPS - 1)]
    shares.append(benchmark.pedantic(one_step, args=(STEPS - 1,), rounds=1))
    record(
        f"training step, cifar10-resnet18, batch {batch}: {np.median(shares):.2%} of the time outside the network's "
        f"forward and backward (median of {STEPS} steps)",
        share_outside_network=float(np.median(shares)),
    )
