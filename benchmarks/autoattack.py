"""AutoAttack: this project's against pyautoattack, on trained networks.

Both run the standard version on the same images; their times, and their verdicts sample by sample, are compared. Each
batch of images is attacked by all providers before the next batch, in an order that rotates, so that a drift of the
machine's speed affects all equally. The two draw different random numbers, so samples whose boundary is close to the
radius may get different verdicts: for these the record has the distance at which FAB-T finds the boundary. Needs
pyautoattack and the folder of real data that IAAT_FAST_DATA names.

With `--keep FOLDER` every finished batch is kept there, and a later run, of more images too, measures only what is
missing; what another commit of iaat_fast or another pyautoattack has measured is measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.record import Record, Row, say
from benchmarks.registry import positive
from benchmarks.targets import CHECKPOINTS, SMALL, as_split, load_trained
from iaat_fast.attacks import FABT
from iaat_fast.evaluate import AutoAttackResult, autoattack
from iaat_fast.evaluate.autoattack import standard
from iaat_fast.storage import content_hash, read_json, write_json

PEER = PACKAGE = "pyautoattack"
# Provider: precision and engine.
ENGINES = {
    "iaat_fast": ("fp32", "auto"),
    "iaat_fast, fast engine": ("fp32", "fast"),
    "iaat_fast, bf16": ("bf16", "auto"),
}

Verdicts = tuple[Tensor, list[dict[str, Any]]]


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", nargs="+", choices=(*CHECKPOINTS, SMALL), help="resnet4b")
    add("--eps", nargs="+", type=float, metavar="E", help="radii in 1/255 (2 8)")
    add("--limit", type=positive, metavar="N", help="the first N images (100)")
    add("--batch-size", type=positive, metavar="N", help="50")
    add("--seed", type=int, default=0)
    add("--no-peer", action="store_true", help="without pyautoattack")
    add("--providers", nargs="+", choices=(*ENGINES, PEER), help="only these (all)")
    add(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="keep finished batches there, and use those there",
    )
    registry.add_device(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    registry.defaults(
        options,
        model=([SMALL], [CHECKPOINTS[0]]),
        eps=([64.0], [2.0, 8.0]),
        limit=(4, 100),
        batch_size=(2, 50),
    )
    for eps in options.eps:
        if not 0 <= eps <= 255:
            parser.error(f"--eps: {eps:g}, expected a number in [0, 255]")


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    chosen = options.providers or (*ENGINES, PEER)
    without = options.no_peer or PEER not in chosen
    peer = None if without else _version()
    if peer is None and not without:
        raise ValueError(f"{PACKAGE} is not installed: pip install {PACKAGE}, or give --no-peer")
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    record.facts["peers"] = {PACKAGE: peer}
    versions = dict.fromkeys(ENGINES, record.machine["commit"]) | {PEER: peer}
    for model in options.model:
        net, x, y, record.facts["images"] = load_trained(model, options.limit, options.device)
        for eps in options.eps:
            providers = {
                name: by_us(net, *ENGINES[name], eps / 255, options.seed)
                for name in ENGINES
                if name in chosen
            }
            if peer is not None:
                providers[PEER] = by_pyautoattack(net, eps / 255, options.seed)
            case = f"{model}, eps {eps:g}/255, {len(x)} images"
            kept = None
            if options.keep is not None:
                setting = {
                    "model": model,
                    "eps": eps,
                    "seed": options.seed,
                    "threads": torch.get_num_threads(),
                }
                kept = Kept(options.keep, setting, versions)
            yield from compare(case, net, x, y, providers, eps / 255, options.batch_size, kept)


class Kept:
    """Batches that are measured, a file each.

    Args:
        folder: where they are.
        setting: what all batches of a case have in common.
        versions: of the providers, by name.
    """

    def __init__(
        self, folder: Path, setting: dict[str, Any], versions: dict[str, str | None]
    ) -> None:
        self._folder, self._setting, self._versions = folder, setting, versions

    def measured(self, run: Callable[[], dict[str, Any]], provider: str, **batch: int) -> Any:
        """What `run` returned for this batch of a provider, in this run or in an earlier one."""
        key = {**self._setting, "provider": provider, "version": self._versions[provider], **batch}
        path = self._folder / f"{content_hash(key)[:16]}.json"
        if path.exists():
            return read_json(path)["result"]
        result = run()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "result": result})
        return result


def by_us(
    net: nn.Module, precision: str, engine: str, eps: float, seed: int
) -> Callable[..., Verdicts]:
    """A provider: verdicts bool [n] of `iaat_fast.evaluate.autoattack` on images and classes, and its stages."""
    attacks = standard(net, precision=precision, engine=engine)

    def run(x: Tensor, y: Tensor) -> Verdicts:
        result: AutoAttackResult = autoattack(
            net, as_split(x, y), eps=eps, batch_size=len(x), seed=seed, attacks=attacks
        )
        return result.correct, [dataclasses.asdict(stage) for stage in result.stages]

    return run


def by_pyautoattack(net: nn.Module, eps: float, seed: int) -> Callable[..., Verdicts]:
    """The same provider of pyautoattack, whose adversarial images are classified here."""
    from pyautoattack.autoattack import AutoAttack

    def run(x: Tensor, y: Tensor) -> Verdicts:
        attack = AutoAttack(net, eps=eps, seed=seed, version="standard", device=x.device)
        x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        if float((x_adv - x).abs().max()) > eps + 1e-6:
            raise ValueError("pyautoattack: its images leave the ball")
        with torch.no_grad():
            return (net(x_adv).argmax(1) == y).cpu(), []

    return run


def compare(
    case: str,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    providers: dict[str, Callable[..., Verdicts]],
    eps: float,
    batch: int,
    kept: Kept | None = None,
) -> list[Row]:
    """A row per provider, on images [N, 3, H, W] and their classes; each batch is a sample of the time.

    Figures: `robust`, share of the images that are robust; `seconds` of each batch in order, and their `total_s`;
    `cpu_s`, processor time of all threads, which counts on a machine that others use; `over_pyautoattack`, how many
    times faster, over all batches, with the `slowest` and the `fastest` batch, and `over_cpu`, by `cpu_s`; number of
    images robust by `both`, only by this provider (`only_it`) and only by pyautoattack (`only_peer`); `edge`, for the
    images whose verdicts differ, the distance of the boundary divided by the radius; `stages`, the result of each
    attack (not known for pyautoattack).
    """
    done: dict[str, list[dict[str, Any]]] = {name: [] for name in providers}
    names = list(providers)
    for number, index in enumerate(torch.arange(len(x), device=x.device).split(batch)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:

            def run(name: str = name, index: Tensor = index) -> dict[str, Any]:
                return _timed(providers[name], x[index], y[index])

            result = kept.measured(run, name, number=number, batch=batch) if kept else run()
            done[name].append(result)
            say(f"{name}: batch {number + 1}, {result['seconds']:.1f} s")
    seconds = {name: [result["seconds"] for result in results] for name, results in done.items()}
    cpu = {name: sum(result["cpu_s"] for result in results) for name, results in done.items()}
    found = {
        name: torch.tensor([verdict for result in results for verdict in result["robust"]])
        for name, results in done.items()
    }
    rows = []
    for name in names:
        row = Row(case=case, provider=name).sampled(seconds[name])
        row.figures = {
            "robust": float(found[name].double().mean()),
            "total_s": sum(seconds[name]),
            "cpu_s": cpu[name],
            "seconds": seconds[name],
            "stages": _summed([result["stages"] for result in done[name]], len(x)),
        }
        if PEER in found:
            ratios = np.array(seconds[PEER]) / np.array(seconds[name])
            row.figures |= {
                "over_pyautoattack": sum(seconds[PEER]) / sum(seconds[name]),
                "slowest": float(ratios.min()),
                "fastest": float(ratios.max()),
                "over_cpu": cpu[PEER] / cpu[name],
                "both": int((found[name] & found[PEER]).sum()),
                "only_it": int((found[name] & ~found[PEER]).sum()),
                "only_peer": int((found[PEER] & ~found[name]).sum()),
                "edge": edge(net, x, y, found[name] != found[PEER], eps),
            }
        rows.append(row)
    return rows


def _timed(provider: Callable[..., Verdicts], x: Tensor, y: Tensor) -> dict[str, Any]:
    """A provider's result on a batch, in plain values: `robust`, `stages`, `seconds` and `cpu_s`."""
    started, busy = time.perf_counter(), time.process_time()
    verdicts, stages = provider(x, y)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {"robust": verdicts.tolist(), "stages": stages, "seconds": seconds, "cpu_s": busy}


def edge(net: nn.Module, x: Tensor, y: Tensor, differ: Tensor, eps: float) -> list[float]:
    """For the images that `differ` selects: an upper bound of the boundary's distance, by FAB-T, over the radius."""
    some = differ.to(x.device)
    if not some.any():
        return []
    x_adv = FABT(net, None)(x[some], y[some])
    return ((x_adv - x[some]).flatten(1).abs().amax(1) / eps).tolist()


def _summed(batches: list[list[dict[str, Any]]], samples: int) -> list[dict[str, Any]]:
    """The stages, summed over all batches."""
    total = []
    for stages in zip(*batches, strict=True):
        summed = {
            key: sum(stage[key] for stage in stages)
            for key in ("standing_before", "fallen", "seconds")
        }
        after = (summed["standing_before"] - summed["fallen"]) / samples
        total.append({"attack": stages[0]["attack"], **summed, "accuracy_after": after})
    return total


def _version() -> str | None:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
