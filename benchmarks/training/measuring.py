"""One network: the authors' loop in its best layout, then every case interleaved with it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks import targets
from benchmarks.attacks.layouts import Layout
from benchmarks.attacks.providers import Setting
from benchmarks.attacks.rates import wait
from benchmarks.interleave import interleave
from benchmarks.record import Row
from benchmarks.training.cases import Case
from benchmarks.training.loops import Trainer, authors_step
from iaat_fast.data import ImageData, Split

EPOCH = 50_000
"""Images of an epoch of CIFAR-10, for the derived seconds."""
BATCHES = 4
UNTIMED = 3
"""Rounds before the first that counts: on CUDA a shape is run, then captured, then replayed."""


@dataclasses.dataclass(frozen=True)
class Course:
    """What all cases of a network are trained on.

    Args:
        network: "resnet18" or "wrn32-10".
        batch: images per step.
        rounds: timed calls of each case.
        steps: training steps per call, after which the host waits for the device; the authors' loop takes one.
        pgd: steps of the attacks.
    """

    network: str
    device: torch.device
    width: int | None = None
    batch: int = 128
    rounds: int = 7
    steps: int = 2
    pgd: int = 10

    @property
    def title(self) -> str:
        return f"{self.network}, batch {self.batch}"

    def common(self) -> dict[str, dict[str, Any]]:
        """What is changed in every case: no warm-up, and weights that stand still, so that all steps are the same
        work."""
        return {
            "model": {"width": self.width},
            "attack": {"steps": self.pgd},
            "epsilon": {"warmup_epochs": 0},
            "optim": {"batch_size": self.batch, "lr": 0.0},
            "run": {"device": str(self.device), "tensorboard": False},
        }

    def build(self) -> tuple[nn.Module, ImageData, str]:
        """A network, images with its own predictions as labels, and what the images are."""
        x, _, source = targets.load_images(BATCHES * self.batch, 32)
        net = targets.build_network(self.network, x[:64].to(self.device), width=self.width)
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.1  # Those of the last batch alone would change the predictions.
        with torch.no_grad():
            labels = torch.cat([net(part.to(self.device)).argmax(1) for part in x.split(64)])
        pixels = x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).to(self.device)
        split = Split(images=pixels, labels=labels)
        return net, ImageData(name="cifar10", train=split, test=split, num_classes=10), source

    def epoch_seconds(self, step: float) -> float:
        """Of an epoch of CIFAR-10 with steps so long, without checkpoints and test accuracy."""
        return step * math.ceil(EPOCH / self.batch)

    def repeated(self, step: Callable[[], None], times: int) -> Callable[[], None]:
        """The call to time: so many steps, and the wait for the device."""

        def call() -> None:
            for _ in range(times):
                step()
            wait(self.device)

        return call


def best_authors(
    course: Course, net: nn.Module, data: ImageData
) -> tuple[Callable[[], None], list[Row], str]:
    """The authors' loop in the faster of the two layouts, a row for each, and the layout's name."""
    setting = Setting(steps=course.pgd)
    made = {}
    for layout in (Layout(False), Layout(True)):
        own = copy.deepcopy(net).to(  # type: ignore[call-overload]
            memory_format=torch.channels_last if layout.channels_last else torch.contiguous_format
        )
        made[str(layout)] = course.repeated(authors_step(own, data, course.batch, setting), 1)
    timings = interleave(made, rounds=3, untimed=1)
    best = min(made, key=timings.median)
    rows = [
        Row(case=course.title, provider=f"authors, {name}").sampled(timings.seconds[name])
        for name in made
    ]
    return made[best], rows, best


def measure_case(
    course: Course, case: Case, net: nn.Module, data: ImageData, authors: Callable[[], None]
) -> Row:
    """Seconds of a step of a case, timed in turn with the authors' loop; what it raises is told.

    Figures: `over_authors`, how many times faster than the authors' loop, median over rounds of the ratio within a
    round; `clean` and `robust`, shares of the images classified correctly before and after the attack, None where the
    method does not count them (lazy's work depends on them).
    """
    row = Row(case=course.title, provider=case.name)
    row.figures["config"] = [f"{section}: {dict(part)}" for section, part in case.changes.items()]
    try:
        trainer = Trainer(case.config(course.network, course.common()), copy.deepcopy(net), data)
        calls: Mapping[str, Callable[[], None]] = {
            "authors": authors,
            "case": course.repeated(trainer, course.steps),
        }
        timings = interleave(calls, rounds=course.rounds, untimed=UNTIMED)
        clean, robust = trainer.shares()
    # Whatever it is, running out of memory among it: a result, and not the end of the run.
    except Exception as error:
        return row.failed(error)
    row.sampled(timings.seconds["case"] / course.steps)
    row.figures |= {
        "epoch_s": course.epoch_seconds(timings.median("case") / course.steps),
        "authors_p50_s": timings.median("authors"),
        "over_authors": timings.ratio("authors", "case") * course.steps,
        "clean": clean,
        "robust": robust,
    }
    return row
