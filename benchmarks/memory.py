"""`python -m benchmarks.memory`: how much memory an attack takes on the CPU, beside the model and the images.

Each way runs in a process of its own, twice (the first call makes the shadow); the figure is the highest resident size
during the second call, less that before the first. The engine's promise: the plain loop's peak and one copy of the
weights. Linux only. On CUDA, `python -m benchmarks.attacks` records the allocator's peaks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.attacks import images, networks, tables
from benchmarks.attacks.contender import Setting, Target
from benchmarks.attacks.engines import engines
from benchmarks.attacks.loops import plain_loop

WAYS = ("plain-loop", "exact", "fast", "bf16")
COLUMNS = ("attack", "peak MiB", "over the plain loop, MiB", "weights MiB")


def resident(field: str) -> int:
    """VmRSS, the resident size, or VmHWM, its highest since the last reset; in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def one(way: str, model: str, batch: int) -> dict[str, int]:
    """Peak of an attack of two steps, and the size of the weights, in bytes; meant for a fresh process."""
    x, _, _ = images.load(batch, networks.image_size(model))
    net = networks.make(model, x)
    with torch.no_grad():
        target = Target(net, x, net(x).argmax(1), 10)
    setting = Setting(steps=2)
    if way == "plain-loop":
        attack = plain_loop(target, setting)
    else:
        known = engines(x.device, tf32=False, with_compile=False)
        attack = next(c for c in known if c.name == way).make(target, setting)
    before = resident("VmRSS")
    attack(target.x, target.y)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    attack(target.x, target.y)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    return {"peak": resident("VmHWM") - before, "weights": weights}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--model", choices=networks.RANDOM, default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="processes of each way")
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"), metavar="FILE")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.way:
        print(json.dumps(one(options.way, options.model, options.batch_size)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.memory", "--way", way]
        command += ["--model", options.model, "--batch-size", str(options.batch_size)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(options.repeats)
        ]
        peaks = sorted(run["peak"] for run in runs)
        found[way] = {
            "peaks": peaks,
            "median": peaks[len(peaks) // 2],
            "weights": runs[0]["weights"],
        }
    plain = found["plain-loop"]["median"]
    rows = [
        [way, *(f"{size / 2**20:.0f}" for size in (f["median"], f["median"] - plain, f["weights"]))]
        for way, f in found.items()
    ]
    tables.write(f"{options.model}, batch {options.batch_size}", COLUMNS, rows)
    result = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.memory", *argv],
        "machine": machine.describe(),
        "model": options.model,
        "batch": options.batch_size,
        "bytes": found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
