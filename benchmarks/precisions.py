"""`python -m benchmarks.precisions`: what the attack's precision costs in verdicts, on real checkpoints.

Each network is attacked in fp32 by the plain arithmetic, and by the fast engine in every precision, from the same
starts. Verdicts are the live network's in fp32. Needs the folder of real data that IAAT_FAST_DATA names.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.attacks import images, networks, tables
from iaat_fast.attacks import PGD, EngineOptions
from iaat_fast.ops.reference import softmax_minus_onehot

EPS, ALPHA, SEED = 8 / 255, 2 / 255, 0
PLAIN = "fp32, plain"
WAYS: dict[str, tuple[str, str | EngineOptions]] = {
    PLAIN: ("fp32", "auto"),
    "fp32, fast": ("fp32", "fast"),
    "bf16, fast": ("bf16", "fast"),
    "fp16, fast": ("fp16", "fast"),
}
COLUMNS = (
    *("gradients", "robust", "points from plain", "verdicts that differ"),
    *("first signs flipped", "s"),
)


@dataclasses.dataclass
class PrecisionRecord:
    """One way to take gradients.

    robust: share of the images that the attack's last iterate does not fool, by the live network in fp32.
    points: robust less that of the plain arithmetic, in percentage points.
    differ: share of the images whose verdict is another than with the plain arithmetic.
    flipped: share of the pixels where the sign of the first gradient, at the image itself, is another.
    seconds: for all images; not interleaved, so no more than a hint.
    """

    name: str
    taken: str
    robust: float
    points: float
    differ: float
    flipped: float
    seconds: float


def first_signs(attack: PGD, x: Tensor, y: Tensor) -> Tensor:
    """int8, the sign of the cross-entropy's gradient at x as the attack takes it."""
    with attack.network.attacked(x):
        _, grad = attack.network.pull_back(x, lambda logits: softmax_minus_onehot(logits, y))
    return grad.sign().to(torch.int8)


def measure(net: nn.Module, x: Tensor, y: Tensor, steps: int, batch: int) -> list[PrecisionRecord]:
    """All ways on the same images [N, 3, H, W] and classes."""
    robust: dict[str, Tensor] = {}
    signs: dict[str, Tensor] = {}
    records = []
    for name, (precision, engine) in WAYS.items():
        attack = PGD(net, EPS, ALPHA, steps, precision=precision, engine=engine, seed=SEED)
        index = torch.arange(len(x), device=x.device)
        started = time.perf_counter()
        stands = [
            attack.logits(attack(x[part], y[part], index=part)).argmax(1) == y[part]
            for part in index.split(batch)
        ]
        robust[name] = torch.cat(stands)
        share = float(robust[name].double().mean())
        seconds = time.perf_counter() - started
        signs[name] = torch.cat(
            [first_signs(attack, x[part], y[part]) for part in index.split(batch)]
        )
        records.append(
            PrecisionRecord(
                name=name,
                taken=attack.network.taken,
                robust=share,
                points=100 * (share - float(robust[PLAIN].double().mean())),
                differ=float((robust[name] != robust[PLAIN]).double().mean()),
                flipped=float((signs[name] != signs[PLAIN]).double().mean()),
                seconds=seconds,
            )
        )
    return records


def row(record: PrecisionRecord) -> list[str]:
    """The record under `COLUMNS`."""
    return [
        record.name,
        f"{record.robust:.2%}",
        f"{record.points:+.2f}",
        f"{record.differ:.2%}",
        f"{record.flipped:.2%}",
        f"{record.seconds:.0f}",
    ]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=networks.CHECKPOINTS, default=["resnet4b"])
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="the first N")
    parser.add_argument("--steps", type=int, default=10, metavar="K")
    parser.add_argument("--batch-size", type=int, default=250, metavar="N")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build/precisions.json"), metavar="FILE")
    options = parser.parse_args(argv)
    x, y, source = images.load(options.images, 32)
    if y is None:
        print("python -m benchmarks.precisions: error: IAAT_FAST_DATA is not set", file=sys.stderr)
        return 2
    x, y = x.to(options.device), y.to(options.device)
    cases = []
    for name in options.models:
        net = networks.checkpoint(name).to(options.device)
        records = measure(net, x, y, options.steps, options.batch_size)
        tables.write(f"{name}, PGD-{options.steps}, {len(x)} images", COLUMNS, map(row, records))
        case = {"model": name, "images": source, "samples": len(x), "steps": options.steps}
        cases.append({**case, "records": [dataclasses.asdict(record) for record in records]})
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result = {
        "time": written,
        "command": ["python", "-m", "benchmarks.precisions", *argv],
        "machine": machine.describe(options.device),
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
