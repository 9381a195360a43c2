"""What it costs to keep the loss and success of every iteration, here and in SecML-Torch, which copies them each step.

`pip install --no-deps secml-torch` brings the peer; without it only iaat_fast is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import registry
from benchmarks.attacks.providers import Setting
from benchmarks.interleave import interleave, wait
from benchmarks.record import Record, Row, say
from benchmarks.registry import positive
from benchmarks.targets import RANDOM, Spec, Target
from iaat_fast.attacks import PGD

Run = Callable[[], Tensor]
"""An attack, from x itself, which gives the images."""

TRACED = {"iaat_fast, trace": "iaat_fast", "SecML-Torch, trackers": "SecML-Torch"}
"""The providers that keep something, and the same attack that keeps nothing."""

FETCHING = {"cpu", "item", "numpy", "tolist", "__bool__", "__float__", "__int__", "__array__"}


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", choices=RANDOM, default="resnet18")
    add("--width", type=positive, metavar="W", help="of resnet18 and wrn32-10 (16)")
    add("--batch-size", type=positive, metavar="N", help="64")
    add("--steps", type=positive, metavar="K", help="40")
    add("--rounds", type=positive, metavar="N", help="timed calls of each (7)")
    registry.add_device(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(options, width=(1, 16), batch_size=(2, 64), steps=(2, 40), rounds=(1, 7))


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    spec = Spec(
        model=options.model, batch=options.batch_size, device=options.device, width=options.width
    )
    target, record.facts["images"] = spec.build()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        record.facts["secml-torch"] = importlib.metadata.version("secml-torch")
    case = (
        f"{options.model} of width {options.width}, batch {options.batch_size}, PGD-{options.steps}"
    )
    say(case)
    setting = Setting(steps=options.steps, random_start=False)
    yield from measure_traces(case, target, setting, rounds=options.rounds)


def measure_traces(case: str, target: Target, setting: Setting, *, rounds: int) -> list[Row]:
    """A row for each attack, with and without a trace, in turn.

    Figures: `over_untraced`, the time with a trace over that without one; `ops`, the operations of torch in a call;
    `fetches`, the tensors that it brings to the host, for each of which a GPU would be waited for. A trace that changes
    the images is wrong.
    """
    providers, missing = ours(target, setting), None
    try:
        providers |= secml(target, setting)
    except ImportError as error:
        missing = str(error)
    images: dict[str, Tensor] = {}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            images[name] = providers[name]()
            wait(target.x.device)

        return call

    timings = interleave({name: timed(name) for name in providers}, rounds=rounds, untimed=1)
    rows = []
    for name, run in providers.items():
        row = Row(case=case, provider=name).sampled(timings.seconds[name])
        with _Counted() as counted:
            run()
        row.figures = {"ops": counted.ops, "fetches": counted.fetches}
        if name in TRACED:
            untraced = TRACED[name]
            row.figures["over_untraced"] = timings.ratio(name, untraced)
            if not torch.equal(images[name], images[untraced]):
                row.refused("wrong", "other images than without a trace")
        rows.append(row)
    if missing is not None:
        rows += [
            Row(case=case, provider=name).refused("missing", missing)
            for name in ("SecML-Torch", "SecML-Torch, trackers")
        ]
    return rows


def ours(target: Target, setting: Setting) -> dict[str, Run]:
    attack = PGD(target.model, setting.eps, setting.alpha, setting.steps, random_start=False)
    return {
        "iaat_fast": lambda: attack.run(target.x, target.y).x_adv,
        "iaat_fast, trace": lambda: attack.run(target.x, target.y, trace=True).x_adv,
    }


def secml(target: Target, setting: Setting) -> dict[str, Run]:
    """SecML-Torch's own PGD, with trackers of what a trace has. ImportError: it is not installed."""
    pgd = importlib.import_module("secmlt.adv.evasion.pgd")
    models = importlib.import_module("secmlt.models.pytorch.base_pytorch_nn")
    trackers = importlib.import_module("secmlt.trackers.trackers")
    model = models.BasePyTorchClassifier(target.model)
    batches: Any = DataLoader(TensorDataset(target.x, target.y), batch_size=len(target.x))

    def attack(kept: list[Any] | None) -> Tensor:
        made = pgd.PGDNative(
            perturbation_model="linf",
            epsilon=setting.eps,
            num_steps=setting.steps,
            step_size=setting.alpha,
            random_start=False,
            trackers=kept,
        )
        (batch,) = made(model, batches)
        x_adv: Tensor = batch[0]
        return x_adv

    return {
        "SecML-Torch": lambda: attack(None),
        "SecML-Torch, trackers": lambda: attack(
            [trackers.LossTracker(), trackers.PredictionTracker()]
        ),
    }


class _Counted(TorchDispatchMode):
    """Counts the operations of torch, and the tensors that are brought to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self._fetches = 0, _Fetches()

    @property
    def fetches(self) -> int:
        return self._fetches.count

    def __enter__(self) -> Self:
        self._fetches.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fetches.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.ops += 1
        return function(*args, **(kwargs or {}))


class _Fetches(TorchFunctionMode):
    """On a CPU no operation is called for them."""

    count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += getattr(function, "__name__", "") in FETCHING
        return function(*args, **(kwargs or {}))
