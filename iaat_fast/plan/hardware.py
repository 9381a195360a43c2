"""The time that passes take: modelled from a GPU's published peaks, from recorded benchmarks, or measured here."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from iaat_fast import validate
from iaat_fast.environment import describe
from iaat_fast.plan.cost import build, images_of
from iaat_fast.plan.kernels import Kernel, Pass
from iaat_fast.storage import read_json
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.attack import make_attack
from iaat_fast.train.methods.passes import Kind
from iaat_fast.train.optim import MixedPrecision

ARITHMETIC, TRAFFIC, LAUNCHES, MEASURED = "arithmetic", "memory traffic", "launches", "measured"
# Steps of the timed attack, over which its start and its copy of the network are divided, as in training.
_STEPS = 5


@dataclass(frozen=True)
class Gpu:
    """The published numbers of a GPU.

    fp16, bf16, tf32, fp32: dense operations per second; None if its matrix units do not have the format.
    bandwidth, memory: bytes per second, and bytes.
    link: bytes per second to the other GPUs of its node, one way.
    multiprocessors: that work on a matrix product at once, a tile of its result each.
    """

    name: str
    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float
    bandwidth: float
    memory: float
    link: float
    multiprocessors: int

    def peak(self, precision: str) -> float:
        """Peak operations per second of convolutions in fp32, tf32, bf16 or fp16.

        For fp32 it is that of TF32 if the GPU has it, which torch lets cuDNN use by default.
        """
        if precision == "fp16":
            return self.fp16
        if precision == "bf16" and self.bf16 is not None:
            return self.bf16
        return self.fp32 if self.tf32 is None else self.tf32


# From NVIDIA's data sheets of the SXM modules. Matrix rates with sparsity are halved, and so is NVLink's bandwidth,
# which counts both directions.
GPUS: dict[str, Gpu] = {
    # name; operations in fp16, bf16, tf32 and fp32; bandwidth, memory, link, multiprocessors
    # "NVIDIA V100 Tensor Core GPU", January 2020: the SXM2 module, in its larger version.
    "v100": Gpu("V100 SXM2 32 GB", 125e12, None, None, 15.7e12, 900e9, 32e9, 150e9, 80),
    # "NVIDIA A100 Tensor Core GPU", June 2021.
    "a100": Gpu("A100 SXM 80 GB", 312e12, 312e12, 156e12, 19.5e12, 2039e9, 80e9, 300e9, 108),
    # "NVIDIA H100 Tensor Core GPU", 2023.
    "h100": Gpu("H100 SXM 80 GB", 989e12, 989e12, 494e12, 67e12, 3350e9, 80e9, 450e9, 132),
    # "NVIDIA H200 Tensor Core GPU", 2024.
    "h200": Gpu("H200 SXM 141 GB", 989e12, 989e12, 494e12, 67e12, 4800e9, 141e9, 450e9, 132),
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, in any case.

    Raises:
        ValueError: an unknown name; the message has the nearest.
    """
    validate.choice("--gpu", name.lower(), GPUS)
    return GPUS[name.lower()]


class Rates(Protocol):
    """The time of passes, and its source."""

    def seconds(
        self, kind: Kind, counted: Pass, precision: str, *, captured: bool = True
    ) -> dict[str, float]:
        """Seconds of the pass over its images, by what they are spent on.

        captured: whether it is replayed from a graph; else the host launches each operator, which may take longer than
            running them.
        """
        ...

    def source(self, kind: Kind, precision: str) -> str:
        """ "measured (...)" or "modelled (...)"."""
        ...


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """The assumptions of a modelled time.

    share: the share of the peak arithmetic that the multiprocessors reach in a matrix product whose tiles occupy all.
    bandwidth_share: the share of the peak bandwidth that an operator reaches.
    launch: seconds that the smallest kernel takes on the device.
    host: seconds of the host for an operator that is not replayed from a graph.
    """

    share: float = 0.8
    bandwidth_share: float = 0.9
    launch: float = 2e-6
    host: float = 32e-6

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("bandwidth-share", self.bandwidth_share)):
            validate.number(f"--{name}", value, high=1.0, above=True)
        # In microseconds, as users type it.
        for name, value in (("launch", self.launch), ("host", self.host)):
            validate.number(f"--{name}", value * 1e6, high=1e6, below=True)


# Of the bandwidth of coalesced accesses, what others reach: with a value per channel; in copies from one memory format
# to another; in convolutions with few channels. The last two take as long per element in any type: shares of fp32.
_BROADCAST, _STRIDED, _NARROW = 0.55, 0.4, 0.27
# Rows and columns of a result that a multiprocessor computes at once; half as many columns where there are no more.
_TILE = 128


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """Modelled times: arithmetic, memory traffic and launch of each kernel, one after the other."""

    gpu: Gpu
    assumed: Assumptions

    def seconds(
        self, kind: Kind, counted: Pass, precision: str, *, captured: bool = True
    ) -> dict[str, float]:
        spent: dict[str, float] = defaultdict(float)
        for kernel in counted.kernels:
            spent[ARITHMETIC] += self.arithmetic(kernel, precision)
            spent[TRAFFIC] += self.traffic(kernel)
            # A product comes with the clearing of its workspace, a kernel of its own.
            spent[LAUNCHES] += self.assumed.launch * (2 if kernel.operations else 1)
        if not captured:
            # Device and host work at the same time, and the slower one decides.
            spent[LAUNCHES] += max(0.0, self.assumed.host * counted.launched - sum(spent.values()))
        return spent

    def arithmetic(self, kernel: Kernel, precision: str) -> float:
        """Seconds of a kernel's operations, by as many multiprocessors as its tiles occupy."""
        seconds = kernel.operations / (self.gpu.peak(precision) * self.assumed.share)
        if not kernel.rows:
            return seconds
        width = _TILE if kernel.columns > _TILE // 2 else _TILE // 2
        tiles = math.ceil(kernel.rows / _TILE) * math.ceil(kernel.columns / width)
        rounds = math.ceil(tiles / self.gpu.multiprocessors)
        done = rounds * self.gpu.multiprocessors * _TILE * width
        return seconds * done / (kernel.rows * kernel.columns)

    def traffic(self, kernel: Kernel) -> float:
        """Seconds of a kernel's reads and writes."""
        bandwidth = self.gpu.bandwidth * self.assumed.bandwidth_share
        if kernel.narrow or kernel.access == "strided":
            return 4 * kernel.elements / (bandwidth * (_NARROW if kernel.narrow else _STRIDED))
        return kernel.bytes / (bandwidth * (_BROADCAST if kernel.access == "broadcast" else 1))

    def source(self, kind: Kind, precision: str) -> str:
        return f"modelled ({self.gpu.name}'s peaks)"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Times from recorded rates of a GPU, or modelled where there are none.

    products: operations per second of matrix products, by precision; they replace the default share of the peak.
    attacks: operations per second of this network's attack, by precision.
    file: the record that they are from.
    """

    model: Modelled
    products: Mapping[str, float] = field(default_factory=dict)
    attacks: Mapping[str, float] = field(default_factory=dict)
    file: str

    def seconds(
        self, kind: Kind, counted: Pass, precision: str, *, captured: bool = True
    ) -> dict[str, float]:
        if kind == "gradient" and precision in self.attacks and counted.operations:
            return {MEASURED: counted.operations / self.attacks[precision]}
        model = self.model
        if precision in self.products:
            # The default share of such a peak is what was measured.
            rate = self.products[precision] / Assumptions.share
            gpu = replace(model.gpu, fp16=rate, bf16=rate, tf32=rate)
            if model.gpu.tf32 is None:
                gpu = replace(gpu, fp32=rate)
            model = replace(model, gpu=gpu)
        return model.seconds(kind, counted, precision, captured=captured)

    def source(self, kind: Kind, precision: str) -> str:
        if kind == "gradient" and precision in self.attacks:
            return f"measured ({self.file})"
        if precision in self.products:
            return f"modelled (matrix products measured in {self.file})"
        return self.model.source(kind, precision)


def recorded(folder: Path, model: Modelled, gpu: str, network: str) -> Rates:
    """The rates of `gpu` (a key of `GPUS`) in the records of `python -m benchmarks attacks` in `folder`, else `model`.

    The rate of the attack is that of the same network and of the engine that training uses.

    Raises:
        ValueError: a record that is not readable as JSON.
    """
    found: Rates = model
    # The last record of the GPU is taken; `h100-10` comes after `h100-2`.
    for path in sorted(folder.rglob("*.json"), key=lambda it: (it.parent, len(it.name), it.name)):
        record = read_json(path)
        machine = record.get("machine")
        name = machine.get("gpu") if isinstance(machine, dict) else None
        if gpu not in str(name).lower() or "matmul_flops_per_s" not in record:
            continue
        attacks = {
            row["precision"]: row["flops_per_second"]
            for row in _attacks(record)
            if row.get("model") == network and row.get("width") is None
            if row.get("kind") == "engine" and row.get("status") == "ok"
            if row.get("provider") in ("exact", row["precision"])
        }
        found = Recorded(
            model=model,
            products=record["matmul_flops_per_s"],
            attacks=attacks,
            file=str(path.relative_to(folder)),
        )
    return found


def _attacks(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The timed rows of a record.

    Of older records, which have them as `records` of `cases`, only those of the live network: at their time copies of
    it were not programs yet.
    """
    for row in record.get("rows", []):
        if row.get("metric") == "time":
            yield {**row, **row["figures"]}
    for case in record.get("cases", []):
        for row in case.get("records", []):
            if row.get("name") == "exact":
                yield {**row, "provider": "exact"} | {k: case.get(k) for k in ("model", "width")}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times measured on `device`: seconds per image of each kind of pass."""

    per_image: dict[Kind, float]
    device: str
    batch: int
    repeats: int

    def seconds(
        self, kind: Kind, counted: Pass, precision: str, *, captured: bool = True
    ) -> dict[str, float]:
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
    attack = make_attack(replace(config.attack, steps=steps), model)
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
