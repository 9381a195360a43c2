"""`python -m benchmarks.autoattack`: AutoAttack, this project's against pyautoattack, on real checkpoints.

Both run the standard version on the same images; compared are the verdicts, sample by sample, and the seconds. The
images are taken in batches, each attacked by all contenders before the next one, in an order that turns with every
batch, so that a machine whose speed drifts is fair to all. The draws differ, so verdicts may, for samples at the very
edge: for those that do, it is told how far FAB-T finds the boundary to be. Needs pyautoattack and the folder of real
data that IAAT_FAST_DATA names.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.attacks import images, networks, tables
from iaat_fast.attacks import FABT
from iaat_fast.data import Split
from iaat_fast.evaluate import AutoAttackResult, autoattack
from iaat_fast.evaluate.autoattack import standard

PEER, PACKAGE = "pyautoattack", "pyautoattack"
ENGINES = {"iaat_fast": "auto", "iaat_fast, fast engine": "fast"}
COLUMNS = (
    *("contender", "robust", "s"),
    *("× pyautoattack", "both robust", "only it robust", "only pyautoattack robust"),
)


@dataclasses.dataclass
class AutoAttackRecord:
    """A contender on all images.

    robust: share of the images that stand.
    seconds: of each batch, in order.
    over_peer: how many times faster than pyautoattack, all batches together; None without it.
    spread: the same of the slowest and the fastest batch.
    both, only_it, only_peer: images robust by both contenders, by this one alone, by pyautoattack alone.
    edge: of the images whose verdicts differ, the distance of the boundary over the radius, as FAB-T finds it.
    stages: what each attack did, over all batches; pyautoattack does not tell seconds by attack.
    """

    name: str
    robust: float
    seconds: list[float]
    over_peer: float | None = None
    spread: tuple[float, float] | None = None
    both: int | None = None
    only_it: int | None = None
    only_peer: int | None = None
    edge: list[float] = dataclasses.field(default_factory=list)
    stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)


Verdicts = tuple[Tensor, list[dict[str, Any]]]


def by_us(net: nn.Module, engine: str, eps: float, seed: int) -> Callable[..., Verdicts]:
    """Verdicts bool [n] of `iaat_fast.evaluate.autoattack` on images and classes, and its stages."""
    attacks = standard(net, engine=engine)

    def run(x: Tensor, y: Tensor) -> Verdicts:
        pixels = x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
        result: AutoAttackResult = autoattack(
            net, Split(pixels, y), eps=eps, batch_size=len(x), seed=seed, attacks=attacks
        )
        return result.correct, [dataclasses.asdict(stage) for stage in result.stages]

    return run


def by_pyautoattack(net: nn.Module, eps: float, seed: int) -> Callable[..., Verdicts]:
    """The same of pyautoattack, whose images are judged by the network here."""
    from pyautoattack.autoattack import AutoAttack

    def run(x: Tensor, y: Tensor) -> Verdicts:
        attack = AutoAttack(net, eps=eps, seed=seed, version="standard", device=x.device)
        x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        if float((x_adv - x).abs().max()) > eps + 1e-6:
            raise ValueError("pyautoattack: its images leave the ball")
        with torch.no_grad():
            return (net(x_adv).argmax(1) == y).cpu(), []

    return run


def measure(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    contenders: dict[str, Callable[..., Verdicts]],
    eps: float,
    batch: int,
) -> list[AutoAttackRecord]:
    """All contenders on images [N, 3, H, W] and classes."""
    robust: dict[str, list[Tensor]] = {name: [] for name in contenders}
    stages: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number, index in enumerate(torch.arange(len(x), device=x.device).split(batch)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            verdicts, did = contenders[name](x[index], y[index])
            seconds[name].append(time.perf_counter() - started)
            robust[name].append(verdicts)
            stages[name].append(did)
            print(f"{name}: batch {number + 1}, {seconds[name][-1]:.1f} s", file=sys.stderr)
    found = {name: torch.cat(parts) for name, parts in robust.items()}
    records = []
    for name in names:
        record = AutoAttackRecord(
            name=name,
            robust=float(found[name].double().mean()),
            seconds=seconds[name],
            stages=_summed(stages[name], len(x)),
        )
        if PEER in found:
            ratios = np.array(seconds[PEER]) / np.array(seconds[name])
            record.over_peer = sum(seconds[PEER]) / sum(seconds[name])
            record.spread = (float(ratios.min()), float(ratios.max()))
            record.both = int((found[name] & found[PEER]).sum())
            record.only_it = int((found[name] & ~found[PEER]).sum())
            record.only_peer = int((found[PEER] & ~found[name]).sum())
            record.edge = edge(net, x, y, found[name] != found[PEER], eps)
        records.append(record)
    return records


def edge(net: nn.Module, x: Tensor, y: Tensor, differ: Tensor, eps: float) -> list[float]:
    """How far the boundary is from some images, over the radius: an upper bound, by FAB-T without a radius."""
    some = differ.to(x.device)
    if not some.any():
        return []
    x_adv = FABT(net, None)(x[some], y[some])
    return ((x_adv - x[some]).flatten(1).abs().amax(1) / eps).tolist()


def _summed(batches: list[list[dict[str, Any]]], samples: int) -> list[dict[str, Any]]:
    """The stages of all batches together."""
    total = []
    for stages in zip(*batches, strict=True):
        summed = {
            key: sum(stage[key] for stage in stages)
            for key in ("standing_before", "fallen", "seconds")
        }
        after = (summed["standing_before"] - summed["fallen"]) / samples
        total.append({"attack": stages[0]["attack"], **summed, "accuracy_after": after})
    return total


def row(record: AutoAttackRecord) -> list[str]:
    """The record under `COLUMNS`."""
    compared = [record.both, record.only_it, record.only_peer]
    return [
        record.name,
        f"{record.robust:.2%}",
        f"{sum(record.seconds):.1f}",
        "" if record.over_peer is None else f"{record.over_peer:.2f}",
        *("" if count is None else str(count) for count in compared),
    ]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoattack", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=networks.CHECKPOINTS, default=["resnet4b"])
    parser.add_argument(
        "--eps", nargs="+", type=float, default=[2, 8], metavar="E", help="radii in 1/255"
    )
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="the first N images")
    parser.add_argument("--batch-size", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peer", action="store_true", help="without pyautoattack")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build"), metavar="DIR")
    options = parser.parse_args(argv)
    for name, value in (("--limit", options.limit), ("--batch-size", options.batch_size)):
        if value < 1:
            return _refused(f"{name}: {value}, expected at least 1")
    if not all(0 <= eps <= 255 for eps in options.eps):
        return _refused(f"--eps: {options.eps}, expected numbers in [0, 255]")
    x, y, source = images.load(options.limit, 32)
    if y is None:
        return _refused("IAAT_FAST_DATA is not set")
    peer = None if options.no_peer else _version()
    if peer is None and not options.no_peer:
        return _refused(f"{PACKAGE} is not installed: pip install {PACKAGE}, or give --no-peer")
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    x, y = x.to(options.device), y.to(options.device)
    result: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.autoattack", *argv],
        "machine": machine.describe(options.device),
        "peer": {PACKAGE: peer},
        "cases": [],
    }
    for model in options.model:
        net = networks.checkpoint(model).to(options.device)
        for eps in options.eps:
            contenders = {
                name: by_us(net, engine, eps / 255, options.seed)
                for name, engine in ENGINES.items()
            }
            if peer is not None:
                contenders[PEER] = by_pyautoattack(net, eps / 255, options.seed)
            records = measure(net, x, y, contenders, eps / 255, options.batch_size)
            tables.write(f"{model}, eps {eps:g}/255, {len(x)} images", COLUMNS, map(row, records))
            case = {"model": model, "eps": eps / 255, "images": source, "samples": len(x)}
            case |= {"batch_size": options.batch_size, "seed": options.seed}
            result["cases"].append({**case, "records": [dataclasses.asdict(r) for r in records]})
            # After every case: hours may lie before the next one.
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "autoattack.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _version() -> str | None:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def _refused(reason: str) -> int:
    print(f"python -m benchmarks.autoattack: error: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
