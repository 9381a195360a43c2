"""The plan of a run: from passes, rates and messages to seconds, hours and what limits them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from iaat_fast.plan.communication import Network, gradients
from iaat_fast.plan.counting import Pass
from iaat_fast.plan.memory import memory
from iaat_fast.plan.passes import Fooled, Kind, Phase, Stage, phases, stages
from iaat_fast.plan.rates import Rates
from iaat_fast.plan.workload import Counts

Source = Literal["given", "counted", "measured", "modelled"]
COMMUNICATION = "communication"
_ITEM = 4
_RADIUS = 8  # bytes: radii are exchanged in float64
_TALLIES = 4  # numbers that the ranks sum in the same message


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of the plan, its unit, and where it comes from.

    source: "given" by the configuration or an argument; "counted" on the network or in the algorithm, exactly;
        "measured" on a device; "modelled", computed from anything that is assumed.
    """

    name: str
    value: float
    unit: str
    source: Source


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of one phase on one GPU.

    passes: images taken through the network, per image of the batch, by kind.
    operations, traffic: of one GPU.
    compute: seconds by what they are spent on.
    """

    phase: Phase
    epochs: int
    passes: dict[Kind, float]
    operations: float
    traffic: float
    compute: dict[str, float]

    def seconds(self, waits: float) -> float:
        """Of the step with `waits` seconds of communication that nothing hides."""
        return sum(self.compute.values()) + waits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on `gpus` GPUs.

    all_reduce: seconds that the exchange of the gradients takes, waited for or not.
    waits: seconds of communication per step that nothing hides, by what is sent.
    held: bytes of a GPU's memory by what they hold; capacity: all that it has.
    passes: seconds of a pass over a GPU's batch; sources: where they come from.
    """

    gpus: int
    batch_size: int
    steps_per_epoch: int
    samples: int
    steps: tuple[Step, ...]
    gradient_bytes: float
    radius_bytes: float
    all_reduce: float
    waits: dict[str, float]
    held: dict[str, float]
    capacity: float
    passes: dict[Kind, float]
    sources: dict[Kind, str]

    @property
    def waited(self) -> float:
        """Seconds of communication per step that nothing hides."""
        return sum(self.waits.values())

    @property
    def hours(self) -> float:
        """Of all training steps; evaluations, checkpoints and a loader that lags are not in it."""
        return sum(self._seconds().values()) / 3600

    @property
    def images_per_second(self) -> float:
        """Training images, on all GPUs, averaged over the run."""
        return self.samples * sum(step.epochs for step in self.steps) / (3600 * self.hours)

    @property
    def spent(self) -> dict[str, float]:
        """Shares of the run's time, by what it is spent on, largest first."""
        seconds = self._seconds()
        whole = sum(seconds.values())
        largest_first = sorted(seconds.items(), key=lambda item: -item[1])
        return {what: part / whole for what, part in largest_first if part}

    def _seconds(self) -> dict[str, float]:
        """Of the whole run, by what they are spent on; an epoch's last batch may be smaller than the others."""
        seconds: dict[str, float] = defaultdict(float)
        for step in self.steps:
            for what, of_step in step.compute.items():
                seconds[what] += of_step * step.epochs * self.samples / self.batch_size
            seconds[COMMUNICATION] += self.waited * step.epochs * self.steps_per_epoch
        return seconds

    @property
    def fits(self) -> bool:
        """Whether what is counted of the memory fits."""
        return sum(self.held.values()) <= self.capacity

    def figures(self) -> Iterator[Figure]:
        """All numbers, in the order in which they are shown."""
        batch = self.batch_size // self.gpus
        yield Figure(name="GPUs", value=self.gpus, unit="", source="given")
        yield Figure(name="batch size, all GPUs", value=self.batch_size, unit="", source="given")
        yield Figure(name="batch size per GPU", value=batch, unit="", source="given")
        yield Figure(name="steps per epoch", value=self.steps_per_epoch, unit="", source="counted")
        for kind, seconds in self.passes.items():
            source: Source = "measured" if self.sources[kind].startswith("measured") else "modelled"
            yield Figure(name=f"{kind} pass", value=seconds * 1e3, unit="ms", source=source)
        for step in self.steps:
            yield from self._of(step)
        yield Figure(
            name="gradient message", value=self.gradient_bytes / 1e6, unit="MB", source="counted"
        )
        yield Figure(name="all-reduce", value=self.all_reduce * 1e3, unit="ms", source="modelled")
        for name, seconds in self.waits.items():
            yield Figure(name=f"waited: {name}", value=seconds * 1e3, unit="ms", source="modelled")
        yield Figure(
            name="radii message", value=self.radius_bytes / 1e3, unit="kB", source="counted"
        )
        yield Figure(
            name="images per second", value=self.images_per_second, unit="", source="modelled"
        )
        yield Figure(name="training steps", value=self.hours, unit="h", source="modelled")
        yield Figure(
            name="training steps", value=self.hours * self.gpus, unit="GPU h", source="modelled"
        )
        for name, size in self.held.items():
            yield Figure(name=f"memory: {name}", value=size / 1e9, unit="GB", source="modelled")
        held = sum(self.held.values())
        yield Figure(
            name="memory per GPU, at least", value=held / 1e9, unit="GB", source="modelled"
        )
        yield Figure(name="memory of a GPU", value=self.capacity / 1e9, unit="GB", source="given")
        for what, share in self.spent.items():
            yield Figure(
                name=f"share of the time: {what}", value=100 * share, unit="%", source="modelled"
            )

    def _of(self, step: Step) -> Iterator[Figure]:
        phase = step.phase
        yield Figure(name=f"{phase}: epochs", value=step.epochs, unit="", source="given")
        # A share of samples that a step takes on, counted or not, is assumed or read off a run.
        source: Source = "modelled" if phase == "adaptive" else "counted"
        for kind, passes in step.passes.items():
            name = f"{phase}: {kind} passes per image"
            yield Figure(name=name, value=passes, unit="", source=source)
        operations, traffic = step.operations / 1e12, step.traffic / 1e9
        for name, value, unit in (("operations", operations, "T"), ("traffic", traffic, "GB")):
            name = f"{phase}: {name} per GPU and step"
            yield Figure(name=name, value=value, unit=unit, source=source)
        seconds = sum(step.compute.values())
        for name, value in (("compute", seconds), ("step", step.seconds(self.waited))):
            yield Figure(name=f"{phase}: {name}", value=value * 1e3, unit="ms", source="modelled")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "gpus": self.gpus,
            "batch_size": self.batch_size,
            "hours": self.hours,
            "fits": self.fits,
            "sources": self.sources,
            "figures": [vars(figure) for figure in self.figures()],
        }


def make_plan(
    counts: Counts,
    rates: Rates,
    network: Network,
    *,
    gpus: int,
    batch_size: int,
    fooled: Fooled,
    capacity: float,
    overlap: bool = True,
) -> Plan:
    """What the run of `counts` takes on `gpus` GPUs with global batches of `batch_size`.

    Args:
        capacity: bytes of a GPU's memory.
        overlap: see `communication.gradients`.

    Raises:
        ValueError: fewer than one GPU, or a batch that they do not divide.
    """
    if gpus < 1:
        raise ValueError(f"--gpus: {gpus}, expected at least 1")
    if batch_size < 1 or batch_size % gpus:
        raise ValueError(
            f"--batch-size: {batch_size}, expected a multiple of the number of GPUs, {gpus}"
        )
    config, batch = counts.config, batch_size // gpus
    by_phase = {phase: stages(config, phase, fooled) for phase in phases(config)}
    steps = tuple(
        _step(counts, rates, phase, by_phase[phase], batch, epochs)
        for phase, epochs in phases(config).items()
    )
    precisions = {kind: counts.precisions[kind] for kind in steps[-1].passes}
    gradient_bytes = _ITEM * counts.weights
    radius_bytes = _RADIUS * (batch_size + _TALLIES)
    backward = _backward(counts, rates, batch)
    all_reduce, waited = gradients(network, gradient_bytes, gpus, backward, overlap=overlap)
    return Plan(
        gpus=gpus,
        batch_size=batch_size,
        steps_per_epoch=math.ceil(counts.images.samples / batch_size),
        samples=counts.images.samples,
        steps=steps,
        gradient_bytes=gradient_bytes,
        radius_bytes=radius_bytes,
        all_reduce=all_reduce,
        waits={
            "gradients": waited,
            "radii": network.all_reduce(radius_bytes, gpus),
            "BatchNorm statistics": network.broadcast(counts.statistics, gpus),
        },
        held=memory(counts, by_phase, batch, gpus=gpus),
        capacity=capacity,
        passes={
            kind: sum(rates.seconds(kind, counts.of(kind, batch), precision).values())
            for kind, precision in precisions.items()
        },
        sources={kind: rates.source(kind, precision) for kind, precision in precisions.items()},
    )


def _step(
    counts: Counts, rates: Rates, phase: Phase, parts: tuple[Stage, ...], batch: int, epochs: int
) -> Step:
    passes: dict[Kind, float] = defaultdict(float)
    for stage in parts:
        passes[stage.kind] += stage.passes
    compute: dict[str, float] = defaultdict(float)
    operations = traffic = 0.0
    for kind, number in passes.items():
        counted = counts.of(kind, batch)
        operations += counted.operations * number
        traffic += counted.bytes * number
        for what, seconds in rates.seconds(kind, counted, counts.precisions[kind]).items():
            compute[what] += seconds * number
    return Step(
        phase=phase,
        epochs=epochs,
        passes=dict(passes),
        operations=operations,
        traffic=traffic,
        compute=dict(compute),
    )


def _backward(counts: Counts, rates: Rates, batch: int) -> float:
    """Seconds of the backward of the update, by its share of the operations."""
    counted: Pass = counts.of("update", batch)
    whole = sum(rates.seconds("update", counted, counts.precisions["update"]).values())
    return whole * (1 - counted.forward / counted.operations)
