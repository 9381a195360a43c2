"""Times the passes of a network on the device that is there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from iaat_fast.environment import describe
from iaat_fast.plan.counting import Pass
from iaat_fast.plan.passes import Kind
from iaat_fast.plan.rates import MEASURED
from iaat_fast.plan.workload import build, images_of
from iaat_fast.train.amp import MixedPrecision
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack

# Steps of the timed attack: its start and its copy of the network are spread over them, as in training.
_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds per image of each pass, as timed on `device`."""

    per_image: dict[Kind, float]
    device: str
    batch: int
    repeats: int

    def seconds(self, kind: Kind, counted: Pass, precision: str) -> dict[str, float]:
        return {MEASURED: self.per_image[kind] * counted.images}

    def source(self, kind: Kind, precision: str) -> str:
        return (
            f"measured ({self.device}, {precision}, batch {self.batch}, median of {self.repeats})"
        )


def measure(config: TrainConfig, device: torch.device, *, batch: int, repeats: int = 5) -> Measured:
    """Time `repeats` passes of each kind over `batch` random images, in turn, and take the medians."""
    torch.manual_seed(0)
    images = images_of(config)
    model = build(config, device)
    x = torch.rand(batch, *images.shape, device=device)
    y = torch.randint(images.classes, (batch,), device=device)
    steps = min(_STEPS, config.attack.steps)
    attack = make_attack(dataclasses.replace(config.attack, steps=steps), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=config.optim.momentum)
    amp = MixedPrecision(config.optim.amp, device)

    def update() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        amp.backward(F.cross_entropy(amp.forward(model, x), y))
        amp.step(optimizer)

    calls: dict[Kind, Callable[[], object]] = {
        "forward": lambda: attack.logits(x),
        "gradient": lambda: attack(x, y),
        "update": update,
    }
    seconds: dict[Kind, list[float]] = {kind: [] for kind in calls}
    for repeat in range(repeats + 1):
        for kind, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first is a warm-up
                seconds[kind].append(time.perf_counter() - start)
    passes = {"forward": 1, "gradient": steps, "update": 1}
    found = describe(device)
    return Measured(
        per_image={
            kind: float(np.median(times)) / (passes[kind] * batch)
            for kind, times in seconds.items()
        },
        device=found["gpu"] or f"{found['cpu']}, {found['threads']} threads",
        batch=batch,
        repeats=repeats,
    )
