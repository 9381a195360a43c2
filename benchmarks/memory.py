"""The memory that an attack takes on the CPU, in addition to the model and the images.

Each provider runs in a process of its own, twice (the first call makes the copy of the network). Its peak is the
highest resident size during the second call, less that before the first. The engine should take the plain loop's peak
plus one copy of the weights. Linux only. On CUDA, the benchmark `attacks` records the allocator's peaks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import registry
from benchmarks.attacks.engines import engines
from benchmarks.attacks.providers import PLAIN, Setting
from benchmarks.record import Record, Row
from benchmarks.registry import positive
from benchmarks.targets import RANDOM, Spec

PROVIDERS = (PLAIN.name, "exact", "fast", "bf16")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", choices=RANDOM, default="resnet18")
    add("--width", type=positive, metavar="W", help="of resnet18 and wrn32-10")
    add("--batch-size", type=positive, metavar="N", help="64")
    add("--repeats", type=positive, metavar="N", help="processes of each provider (3)")


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(options, width=(4, None), batch_size=(8, 64), repeats=(1, 3))


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    spec = Spec(
        model=options.model, batch=options.batch_size, device="cpu", width=options.width
    ).to_dict()
    plain = None
    for provider in PROVIDERS[:2] if options.quick else PROVIDERS:
        command = [sys.executable, "-m", "benchmarks.memory", provider, json.dumps(spec)]
        runs = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            for _ in range(options.repeats)
        ]
        row = Row(
            case=f"{options.model}, batch {options.batch_size}",
            provider=provider,
            metric="peak memory",
            unit="B",
        ).sampled(run["peak"] for run in runs)
        plain = plain or row.p50
        assert row.p50 is not None
        assert plain is not None
        row.figures = {
            "over_plain_loop_bytes": row.p50 - plain,
            "weights_bytes": runs[0]["weights"],
        }
        yield row


def one(provider: str, spec: Spec) -> dict[str, int]:
    """Peak of an attack of two steps, and the size of the weights, in bytes; to be called in a new process."""
    target, _ = spec.build()
    known = [PLAIN, *engines(target.x.device, tf32=False, with_compile=False)]
    attack = next(each for each in known if each.name == provider).make(target, Setting(steps=2))
    before = resident("VmRSS")
    attack(target.x, target.y)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    attack(target.x, target.y)
    weights = sum(p.numel() * p.element_size() for p in target.model.parameters())
    return {"peak": resident("VmHWM") - before, "weights": weights}


def resident(field: str) -> int:
    """VmRSS, the resident size, or VmHWM, its highest since the last reset; in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1], Spec(**json.loads(sys.argv[2])))))
