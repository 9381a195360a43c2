"""How long a pass takes: modelled from a GPU's published peaks, or read from recorded benchmarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from iaat_fast.files import read_json
from iaat_fast.plan.counting import Pass
from iaat_fast.plan.gpus import Gpu
from iaat_fast.plan.passes import Kind

ARITHMETIC, TRAFFIC, LAUNCHES, MEASURED = "arithmetic", "memory traffic", "launches", "measured"


class Rates(Protocol):
    """Tells the seconds of a pass, and where they come from."""

    def seconds(self, kind: Kind, counted: Pass, precision: str) -> dict[str, float]:
        """Seconds of the pass over its images, by what they are spent on."""
        ...

    def source(self, kind: Kind, precision: str) -> str:
        """ "measured (...)" or "modelled (...)"."""
        ...


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a modelled time takes for granted.

    share: of the peak arithmetic that a convolution or matrix product reaches.
    bandwidth_share: of the peak bandwidth that an operator reaches.
    launch: seconds that the smallest operator takes.
    """

    share: float = 0.4
    bandwidth_share: float = 0.8
    launch: float = 5e-6

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("bandwidth-share", self.bandwidth_share)):
            if not 0 < value <= 1:
                raise ValueError(f"--{name}: {value:g}, expected a share in (0, 1]")
        if not 0 <= self.launch < 1:
            raise ValueError(
                f"--launch: {self.launch * 1e6:g} us, expected at least 0 and less than a second"
            )


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """An operator takes as long as its arithmetic, its memory traffic or its launch, whichever is longest."""

    gpu: Gpu
    assumed: Assumptions

    def seconds(self, kind: Kind, counted: Pass, precision: str) -> dict[str, float]:
        arithmetic = self.gpu.peak(precision) * self.assumed.share
        bandwidth = self.gpu.bandwidth * self.assumed.bandwidth_share
        spent: dict[str, float] = defaultdict(float)
        for kernel in counted.kernels:
            terms = {
                ARITHMETIC: kernel.operations / arithmetic,
                TRAFFIC: kernel.bytes / bandwidth,
                LAUNCHES: self.assumed.launch,
            }
            longest = max(terms, key=terms.__getitem__)
            spent[longest] += terms[longest]
        return spent

    def source(self, kind: Kind, precision: str) -> str:
        return f"modelled ({self.gpu.name}'s peaks)"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Recorded rates of a GPU, where there are any for a pass; the model elsewhere.

    products: operations per second of matrix products, by precision; they take the place of the published peak.
    attacks: operations per second of this network's attack, by precision.
    file: where they were read.
    """

    model: Modelled
    products: Mapping[str, float] = field(default_factory=dict)
    attacks: Mapping[str, float] = field(default_factory=dict)
    file: str

    def seconds(self, kind: Kind, counted: Pass, precision: str) -> dict[str, float]:
        if kind == "gradient" and precision in self.attacks:
            return {MEASURED: counted.operations / self.attacks[precision]}
        model = self.model
        if precision in self.products:
            rate = self.products[precision]
            gpu = replace(model.gpu, fp16=rate, bf16=rate, tf32=rate, fp32=rate)
            model = replace(model, gpu=gpu)
        return model.seconds(kind, counted, precision)

    def source(self, kind: Kind, precision: str) -> str:
        if kind == "gradient" and precision in self.attacks:
            return f"measured ({self.file})"
        if precision in self.products:
            return f"modelled (matrix products measured in {self.file})"
        return self.model.source(kind, precision)


def recorded(folder: Path, model: Modelled, gpu: str, network: str) -> Rates:
    """The rates of `gpu` (a key of `GPUS`) that `python -m benchmarks attacks` left in `folder`, or else the model.

    An attack's rate is taken from records of the same network, of the engine that training uses.

    Raises:
        ValueError: a record that is not readable as JSON.
    """
    found: Rates = model
    # The last of a machine, of `h100-2` and `h100-10` the latter.
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
    """What was timed: the rows of a record, or the `records` by case of one made before there were rows."""
    for row in record.get("rows", []):
        if row.get("metric") == "time":
            yield {**row, **row["figures"]}
    for case in record.get("cases", []):
        for row in case.get("records", []):
            yield {
                **row,
                "provider": row.get("name"),
                **{k: case.get(k) for k in ("model", "width")},
            }
