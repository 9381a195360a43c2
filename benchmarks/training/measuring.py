"""Times training steps in turn with plain PyTorch that does the same work as the authors' released code."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import targets
from benchmarks.attacks.layouts import Layout
from benchmarks.attacks.providers import Setting, start, step
from benchmarks.interleave import interleave, wait
from benchmarks.record import Row
from iaat_fast import methods, ops
from iaat_fast.data import ImageData, Split
from iaat_fast.train import TrainConfig, override, preset
from iaat_fast.train.cudagraph_step import CudaGraphStep, capture_for
from iaat_fast.train.dataloader import TrainLoader
from iaat_fast.train.setup import make_state

NETWORKS = ("resnet18", "wrn32-10")
FINALS = ("exact", "reuse")
PRECISIONS = ("bf16", "fp32")
# The most important cases; the others are variations of them.
WANTED = (
    "iaat batched exact bf16",
    "iaat batched reuse bf16",
    "adv bf16",
    "iaat lazy exact fp32",
    "clean bf16",
    "iaat lazy exact bf16",
    "adv fp32",
    "clean fp32",
)
ATTACKS = 3
"""PGD attacks of a step of the released code, one after the other: at prev + gamma, at prev, at the new radius."""
EPOCH = 50_000
"""Images of an epoch of CIFAR-10, for the derived seconds."""
BATCHES = 4
UNTIMED = 3
"""Rounds before the first that counts: on CUDA a shape is run, then captured, then replayed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of training: its name, the method, and what it changes in the configuration of the network's preset."""

    name: str
    method: Any  # "clean", "adv" or "iaat"
    changes: Mapping[str, Mapping[str, Any]]

    def config(self, network: str, common: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
        """The configuration on a network, with changes that all cases share."""
        base = preset(f"cifar10-{network}", method=self.method)
        return override(override(base, common), self.changes)


def cases(config: TrainConfig | None = None) -> list[Case]:
    """All cases, in the order in which they are timed.

    "fp32" is the arithmetic of the preset, "bf16" attacks in bfloat16 and autocast in the weights' update. Strategies
    are those that the configuration knows. Where it has `optim.graph` and `run.fast`, the most wanted also come
    without the graph, and IAAT with what `--fast` chooses.

    Args:
        config: whose fields are looked at; TrainConfig's by default.
    """
    config = TrainConfig() if config is None else config
    precisions: dict[str, dict[str, dict[str, Any]]] = {
        "bf16": {"attack": {"precision": "bf16"}, "optim": {"amp": "bf16"}},
        "fp32": {},
    }
    found = [
        Case(f"{method} {precision}", method, precisions[precision])
        for method, precision in itertools.product(("clean", "adv"), PRECISIONS)
    ]
    for precision, final, strategy in itertools.product(PRECISIONS, FINALS, _strategies(config)):
        changes = {**precisions[precision], "epsilon": {"strategy": strategy, "final": final}}
        found.append(Case(f"iaat {strategy} {final} {precision}", "iaat", changes))
    found.sort(key=lambda case: _place(case.name))
    if hasattr(config.run, "fast"):
        found.insert(1, Case("iaat --fast", "iaat", {"run": {"fast": True}}))
    if hasattr(config.optim, "graph"):
        some = [case for case in found if case.name in WANTED[:3]]
        found += [_without_graph(case) for case in some]
    return found


def _strategies(config: TrainConfig) -> Iterable[str]:
    """All except "auto", which is one of the others."""
    known = typing.get_args(typing.get_type_hints(type(config.epsilon))["strategy"])
    return [name for name in known if name != "auto"]


def _without_graph(case: Case) -> Case:
    optim = {**case.changes.get("optim", {}), "graph": False}
    return Case(f"{case.name}, no graph", case.method, {**case.changes, "optim": optim})


def _place(name: str) -> int:
    return WANTED.index(name) if name in WANTED else len(WANTED)


class Trainer:
    """Steps of `fit` without what lies between them: augmentation, attacks, selection, update, radii.

    Args:
        config: with `optim.lr` 0 all steps are the same work.
        model: trained in place, on the device.
        data: images and labels on the device.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, data: ImageData) -> None:
        device = data.train.labels.device
        self.state = make_state(config, model, data, device)
        if methods.row(config.method).radius == "adaptive":
            # As after the warm-up: radii that start at 0 would stay there.
            self.state.memory.values.fill_(config.epsilon.eps_w)
        self._epoch = config.epsilon.warmup_epochs
        self._numbers = itertools.count()
        self._loader = TrainLoader(data.train, augment=config.data.augment)
        size = config.optim.batch_size
        self._batches = torch.arange(len(data.train), device=device).split(size)
        self._step = CudaGraphStep(
            self.state.training_step,
            size=size,
            capture=capture_for(device) if config.optim.graph else None,
        )

    def __call__(self) -> None:
        """One step, on the next batch."""
        number = next(self._numbers)
        batch = self._batches[number % len(self._batches)]
        (loaded,) = self._loader([batch], [number])
        self._step(loaded, epoch=self._epoch, seed=number)

    def shares(self) -> tuple[float | None, float | None]:
        """Of the images of all steps so far, those classified correctly before and after the attack; None where the
        method does not count them."""
        self._step.settle()  # raises what they have found wrong
        training_step = self.state.training_step
        _, clean, robust, seen = training_step.totals.tolist()
        method = training_step.method
        return (
            clean / seen if method.counts_clean else None,
            robust / seen if method.counts_robust else None,
        )


def authors_step(
    model: nn.Module, data: ImageData, batch_size: int, setting: Setting
) -> Callable[[], None]:
    """The work of a step of the released code after its warm-up, on images augmented by the same op.

    Three PGD attacks by `loss.backward()`, which adds up gradients of the weights that no one reads, each followed by a
    forward for its verdicts; a forward of the clean images; the update. Choosing the radii costs nothing here, and the
    attacks are in eval mode, which is less work than the batch statistics of the released code.
    """
    assert isinstance(data.train, Split)
    images, labels = data.train.images.contiguous(), data.train.labels
    batches = torch.arange(len(labels), device=labels.device).split(batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=2e-4)
    numbers = itertools.count()

    def attack(x: Tensor, y: Tensor) -> Tensor:
        x_adv = start(x, setting)
        for _ in range(setting.steps):
            x_adv.requires_grad_()
            F.cross_entropy(model(x_adv), y).backward()
            assert x_adv.grad is not None
            x_adv = step(x_adv, x_adv.grad, x, setting)
        return x_adv

    def call() -> None:
        number = next(numbers)
        index = batches[number % len(batches)]
        x, y = ops.random_crop_flip(images, index, number), labels[index]
        model.eval()
        with torch.no_grad():
            model(x).argmax(1)
        for _ in range(ATTACKS):
            x_adv = attack(x, y)
            with torch.no_grad():
                model(x_adv).argmax(1)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv), y).backward()
        optimizer.step()

    return call


@dataclasses.dataclass(frozen=True)
class Workload:
    """What all cases of a network have in common: images, sizes and numbers of steps.

    Args:
        network: "resnet18" or "wrn32-10".
        width, depth: of the network; None: its own.
        batch: images per step.
        rounds: timed calls of each case.
        steps: training steps per call, after which the host waits for the device; the authors' loop takes one.
        pgd: steps of the attacks.
    """

    network: str
    device: torch.device
    width: int | None = None
    depth: int | None = None
    batch: int = 128
    rounds: int = 7
    steps: int = 2
    pgd: int = 10

    @property
    def title(self) -> str:
        return f"{self.network}, batch {self.batch}"

    def common(self) -> dict[str, dict[str, Any]]:
        """What is changed in every case: no warm-up, and weights that do not move, so that all steps are the same
        work."""
        return {
            "model": {"width": self.width, "depth": self.depth},
            "attack": {"steps": self.pgd},
            "epsilon": {"warmup_epochs": 0},
            "optim": {"batch_size": self.batch, "lr": 0.0},
            "run": {"device": str(self.device), "tensorboard": False},
        }

    def build(self) -> tuple[nn.Module, ImageData, str]:
        """A network, images with its own predictions as labels, and what the images are."""
        x, _, source = targets.load_images(BATCHES * self.batch, 32)
        net = targets.build_network(
            self.network, x[:64].to(self.device), width=self.width, depth=self.depth
        )
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
    workload: Workload, net: nn.Module, data: ImageData
) -> tuple[Callable[[], None], list[Row], str]:
    """The authors' loop in the faster of the two layouts, a row for each, and the layout's name."""
    setting = Setting(steps=workload.pgd)
    made = {}
    for layout in (Layout(False), Layout(True)):
        own = copy.deepcopy(net).to(  # type: ignore[call-overload]
            memory_format=torch.channels_last if layout.channels_last else torch.contiguous_format
        )
        made[str(layout)] = workload.repeated(authors_step(own, data, workload.batch, setting), 1)
    timings = interleave(made, rounds=3, untimed=1)
    best = min(made, key=timings.median)
    rows = [
        Row(case=workload.title, provider=f"authors, {name}").sampled(timings.seconds[name])
        for name in made
    ]
    return made[best], rows, best


def measure_case(
    workload: Workload, case: Case, net: nn.Module, data: ImageData, authors: Callable[[], None]
) -> Row:
    """Seconds of a step of a case, timed in turn with the authors' loop; what it raises is told.

    Figures: `over_authors`, how many times faster than the authors' loop, median over rounds of the ratio within a
    round; `clean` and `robust`, shares of the images classified correctly before and after the attack, None where the
    method does not count them (lazy's work depends on them).
    """
    row = Row(case=workload.title, provider=case.name)
    row.figures["config"] = [f"{section}: {dict(part)}" for section, part in case.changes.items()]
    try:
        trainer = Trainer(
            case.config(workload.network, workload.common()), copy.deepcopy(net), data
        )
        calls: Mapping[str, Callable[[], None]] = {
            "authors": authors,
            "case": workload.repeated(trainer, workload.steps),
        }
        timings = interleave(calls, rounds=workload.rounds, untimed=UNTIMED)
        clean, robust = trainer.shares()
    # Whatever it is, running out of memory among it: a result, and not the end of the run.
    except Exception as error:
        return row.failed(error)
    row.sampled(timings.seconds["case"] / workload.steps)
    row.figures |= {
        "epoch_s": workload.epoch_seconds(timings.median("case") / workload.steps),
        "authors_p50_s": timings.median("authors"),
        "over_authors": timings.ratio("authors", "case") * workload.steps,
        "clean": clean,
        "robust": robust,
    }
    return row
