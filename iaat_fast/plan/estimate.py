"""`make_plan`: the plan of a run, from passes, rates and messages to seconds, hours and what limits them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iaat_fast import validate
from iaat_fast.plan.cost import Counts
from iaat_fast.plan.hardware import Rates
from iaat_fast.plan.interconnect import Network, gradients
from iaat_fast.plan.kernels import CALL, STEP, Pass
from iaat_fast.train import awp
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.passes import Fooled, Kind, Stage

Source = Literal["given", "counted", "measured", "modelled"]
COMMUNICATION = "communication"
_MEMORY = "memory per GPU"
_ITEM = 4  # bytes of a float32: weights, gradients, momentum, images, radii
_HALF = 2
_RADIUS = 8  # bytes: radii are exchanged in float64
_TALLIES = 4  # numbers that the ranks sum in the same message


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of the plan, with its unit, its group in the table and its source.

    source: "given" by the configuration, an argument or a data sheet; "counted" exactly, on the network or in the
        algorithm; "measured" on a device; "modelled", computed from something that is assumed.
    """

    group: str
    name: str
    value: float
    unit: str
    source: Source


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step of one phase (see `awp.phase`) on one GPU.

    passes: of the network, per image of the batch, by kind.
    operations, traffic: of one GPU; bytes of memory traffic.
    compute: seconds by what they are spent on.
    is_counted: whether passes, operations and traffic are independent of an assumed share of fooled samples.
    captured: whether the whole step is replayed from a graph.
    """

    phase: str
    epochs: int
    passes: dict[Kind, float]
    operations: float
    traffic: float
    compute: dict[str, float]
    is_counted: bool
    captured: bool

    def figures(self, waited: float) -> Iterator[Figure]:
        """All numbers of a step that waits for communication for `waited` seconds."""
        group = f"a step, {self.phase}"
        source: Source = "counted" if self.is_counted else "modelled"
        yield Figure(group=group, name="epochs of such", value=self.epochs, unit="", source="given")
        numbers: list[tuple[str, float, str]] = [
            (f"{kind} passes per image", passes, "") for kind, passes in self.passes.items()
        ]
        numbers.append(("operations per GPU", self.operations / 1e12, "TFLOP"))
        numbers.append(("memory traffic per GPU", self.traffic / 1e9, "GB"))
        for name, value, unit in numbers:
            yield Figure(group=group, name=name, value=value, unit=unit, source=source)
        seconds = sum(self.compute.values())
        yield from _modelled(
            group, ("compute", 1e3 * seconds, "ms"), ("whole", 1e3 * (seconds + waited), "ms")
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run on `gpus` GPUs.

    gradient_bytes, radius_bytes: sizes of the messages of a step.
    all_reduce: seconds that the exchange of the gradients takes, whether or not a step waits for it.
    waits: seconds per step that a step waits for communication, by what is sent.
    held: the content of a GPU's memory, in GB; capacity: bytes of its memory.
    passes: seconds of a pass per image; sources: where they come from.
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
    held: tuple[Figure, ...]
    capacity: float
    passes: dict[Kind, float]
    sources: dict[Kind, str]

    @property
    def waited(self) -> float:
        """Seconds per step that a step waits for communication."""
        return sum(self.waits.values())

    @property
    def hours(self) -> float:
        """Hours of all training steps, without evaluations, checkpoints and waiting for the data loader."""
        return sum(self._seconds().values()) / 3600

    @property
    def images_per_second(self) -> float:
        """Training images per second, on all GPUs, averaged over the run."""
        return self.samples * sum(step.epochs for step in self.steps) / (3600 * self.hours)

    @property
    def spent(self) -> dict[str, float]:
        """Shares of the run's time, by what it is spent on, largest first."""
        seconds = self._seconds()
        whole = sum(seconds.values())
        largest_first = sorted(seconds.items(), key=lambda item: -item[1])
        return {what: part / whole for what, part in largest_first if part}

    def _seconds(self) -> dict[str, float]:
        """Seconds of the whole run, by what they are spent on."""
        seconds: dict[str, float] = defaultdict(float)
        for step in self.steps:
            for what, of_step in step.compute.items():
                seconds[what] += of_step * step.epochs * self.samples / self.batch_size
            seconds[COMMUNICATION] += self.waited * step.epochs * self.steps_per_epoch
        return seconds

    @property
    def fits(self) -> bool:
        """Whether `held_bytes`, a lower bound, fit into the memory of a GPU."""
        return self.held_bytes <= self.capacity

    @property
    def held_bytes(self) -> float:
        """Bytes of a GPU's memory that are needed at least."""
        return 1e9 * sum(figure.value for figure in self.held)

    def figures(self) -> Iterator[Figure]:
        """All numbers, in the order in which they are shown."""
        yield from _given(
            "run",
            ("GPUs", self.gpus, ""),
            ("batch size", self.batch_size, "images"),
            ("batch size per GPU", self.batch_size // self.gpus, "images"),
        )
        yield from _modelled(
            "run",
            ("images per second", self.images_per_second, ""),
            ("training steps", self.hours, "h"),
            ("training steps, of all GPUs", self.hours * self.gpus, "GPU h"),
        )
        for kind, seconds in self.passes.items():
            source: Source = "measured" if self.sources[kind].startswith("measured") else "modelled"
            yield Figure(
                group="a pass, per image",
                name=kind,
                value=1e6 * seconds,
                unit="us",
                source=source,
            )
        for step in self.steps:
            yield from step.figures(self.waited)
        yield from self._communication()
        yield from self.held
        yield from _modelled(_MEMORY, ("sum, at least", self.held_bytes / 1e9, "GB"))
        yield from _given(_MEMORY, ("of the GPU", self.capacity / 1e9, "GB"))
        spent = [(what, 100 * share, "%") for what, share in self.spent.items()]
        yield from _modelled("where the time goes", *spent)

    def _communication(self) -> Iterator[Figure]:
        group = "communication per step"
        for name, size in (("gradients", self.gradient_bytes), ("radii", self.radius_bytes)):
            yield Figure(group=group, name=name, value=size / 1e6, unit="MB", source="counted")
        waits = [(f"waiting for {name}", 1e3 * wait, "ms") for name, wait in self.waits.items()]
        yield from _modelled(
            group, ("all-reduce of gradients", 1e3 * self.all_reduce, "ms"), *waits
        )

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
    """The plan of the run of `counts` on `gpus` GPUs with global batches of `batch_size`.

    Args:
        counts: the costs of its passes.
        rates: the times of its passes.
        network: what connects the GPUs.
        gpus, batch_size: see above.
        fooled: assumed shares of fooled samples.
        capacity: bytes of a GPU's memory.
        overlap: see `interconnect.gradients`.

    Raises:
        ValueError: fewer than one GPU, or a batch that they do not divide.
    """
    validate.integer("--gpus", gpus, 1)
    if batch_size < 1 or batch_size % gpus:
        raise ValueError(
            f"--batch-size: {batch_size}, expected a multiple of the number of GPUs, {gpus}"
        )
    config, batch = counts.config, batch_size // gpus
    epochs = phases(config)
    by_phase = {phase: awp.passes(config, phase, fooled) for phase in epochs}
    steps = tuple(
        _step(
            counts,
            rates,
            phase,
            stages,
            batch,
            epochs[phase],
            captured=is_captured(counts, stages, gpus),
        )
        for phase, stages in by_phase.items()
    )
    precisions = {kind: counts.precisions[kind] for kind in steps[-1].passes}
    gradient_bytes = _ITEM * counts.weights
    radius_bytes = _RADIUS * (batch_size + _TALLIES)
    backward = _backward(counts, rates, batch)
    all_reduce, waited = gradients(network, gradient_bytes, gpus, backward, overlap=overlap)
    # Each gradient of the weights is averaged over the GPUs.
    exchanges = max(sum(each.kind == "update" for each in stages) for stages in by_phase.values())
    return Plan(
        gpus=gpus,
        batch_size=batch_size,
        steps_per_epoch=math.ceil(counts.images.samples / batch_size),
        samples=counts.images.samples,
        steps=steps,
        gradient_bytes=gradient_bytes,
        radius_bytes=radius_bytes,
        all_reduce=exchanges * all_reduce,
        waits={
            "gradients": exchanges * waited,
            "radii": network.all_reduce(radius_bytes, gpus),
            "BatchNorm statistics": network.broadcast(counts.statistics, gpus),
        },
        held=tuple(_memory(counts, by_phase, batch, gpus=gpus)),
        capacity=capacity,
        passes={
            kind: sum(rates.seconds(kind, counts.of(kind, batch), precision).values()) / batch
            for kind, precision in precisions.items()
        },
        sources={kind: rates.source(kind, precision) for kind, precision in precisions.items()},
    )


def phases(config: TrainConfig) -> dict[str, int]:
    """The number of epochs of each phase of the training."""
    return dict(Counter(awp.phase(config, epoch) for epoch in range(config.optim.epochs)))


def is_captured(counts: Counts, stages: Sequence[Stage], gpus: int) -> bool:
    """Whether training on GPUs captures a whole step in a CUDA graph.

    Not with `optim.graph` off; on several GPUs, which exchange gradients; in fp16, whose overflows the host looks for;
    and where a batch depends on which samples are fooled. Attacks in eval mode are captured all the same.
    """
    optim = counts.config.optim
    waits = any(stage.depends_on_samples for stage in stages)
    return optim.graph and gpus == 1 and counts.precisions["update"] != "fp16" and not waits


def _step(
    counts: Counts,
    rates: Rates,
    phase: str,
    parts: tuple[Stage, ...],
    batch: int,
    epochs: int,
    *,
    captured: bool,
) -> Step:
    passes: dict[Kind, float] = defaultdict(float)
    compute: dict[str, float] = defaultdict(float)
    operations = traffic = 0.0

    def take(kind: Kind, counted: Pass, number: float, *, replayed: bool) -> None:
        nonlocal operations, traffic
        operations += counted.operations * number
        traffic += counted.bytes * number
        precision = counts.precisions[kind]
        for what, seconds in rates.seconds(kind, counted, precision, captured=replayed).items():
            compute[what] += seconds * number

    for stage in parts:
        passes[stage.kind] += stage.passes
        # Candidates attacked at once are one larger batch.
        copies = stage.copies if stage.kind == "gradient" else 1
        replayed = captured or (stage.kind == "gradient" and counts.config.attack.bn == "eval")
        counted = counts.of(stage.kind, copies * batch)
        take(stage.kind, counted, stage.passes / copies, replayed=replayed)
        if stage.kind == "gradient":
            calls = math.ceil(stage.passes / copies / counts.config.attack.steps)
            take("gradient", CALL, calls, replayed=captured)
    for _ in range(sum(stage.kind == "update" for stage in parts)):
        take("update", counts.optimizer, 1, replayed=captured)
    take("update", STEP, 1, replayed=captured)
    return Step(
        phase=phase,
        epochs=epochs,
        passes=dict(passes),
        operations=operations,
        traffic=traffic,
        compute=dict(compute),
        is_counted=not any(stage.depends_on_samples for stage in parts),
        captured=captured,
    )


def _backward(counts: Counts, rates: Rates, batch: int) -> float:
    """Seconds of the backward of the update: in proportion to its share of the update's operations."""
    counted = counts.of("update", batch)
    whole = sum(rates.seconds("update", counted, counts.precisions["update"]).values())
    return whole * counted.backward_share


def _memory(
    counts: Counts, by_phase: Mapping[str, Sequence[Stage]], batch: int, *, gpus: int
) -> Iterator[Figure]:
    """The content of the memory, in GB, of one GPU with `batch` images.

    The sum is a lower bound: fragmentation, the workspaces of convolutions, and CUDA itself come on top.
    """
    weights = _ITEM * counts.weights
    stages = [stage for parts in by_phase.values() for stage in parts]
    has_attack = any(stage.kind == "gradient" for stage in stages)
    copies = max(stage.copies for stage in stages)
    attacked = counts.of("gradient", copies * batch).saved if has_attack else 0
    yield _counted("weights and statistics", weights + counts.statistics)
    # DistributedDataParallel's buckets are a copy of the gradients.
    yield _counted("gradients", weights * (2 if gpus > 1 else 1))
    yield _counted("momentum", weights)
    if any(sum(stage.kind == "update" for stage in parts) > 1 for parts in by_phase.values()):
        yield _counted("weights before their perturbation", weights)
    if has_attack and counts.is_copied:
        item = _HALF if counts.precisions["gradient"] in ("fp16", "bf16") else _ITEM
        yield _counted("the attack's copy of the weights", item * counts.weights)
    # With a loss on clean and adversarial images, the activations of both are kept.
    losses = max(stage.passes for stage in stages if stage.kind == "update")
    updated = losses * counts.of("update", batch).saved
    yield _counted("activations", max(updated, attacked))
    image = _ITEM * math.prod(counts.images.shape)
    # The clean images, and the images and gradients of each candidate.
    images = image * batch * (1 + 2 * copies)
    yield from _modelled(_MEMORY, ("images and their gradients", images / 1e9, "GB"))
    if has_attack:
        yield _counted("radii of all samples", _ITEM * counts.images.samples)
    if counts.images.resident:
        yield _counted("data set", math.prod(counts.images.shape) * counts.images.samples)


def _counted(name: str, size: float) -> Figure:
    return Figure(group=_MEMORY, name=name, value=size / 1e9, unit="GB", source="counted")


def _given(group: str, *numbers: tuple[str, float, str]) -> Iterator[Figure]:
    for name, value, unit in numbers:
        yield Figure(group=group, name=name, value=value, unit=unit, source="given")


def _modelled(group: str, *numbers: tuple[str, float, str]) -> Iterator[Figure]:
    for name, value, unit in numbers:
        yield Figure(group=group, name=name, value=value, unit=unit, source="modelled")
