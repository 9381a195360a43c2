"""PGD by iaat_fast against plain loops and other libraries: the results are checked, then times are compared."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import registry, targets
from benchmarks.attacks import providers
from benchmarks.attacks.engines import engines
from benchmarks.attacks.measuring import Race
from benchmarks.attacks.providers import EXPERT, LOOPS, PEERS, Missing, Provider, Setting
from benchmarks.record import Record, Row, say
from benchmarks.registry import positive
from benchmarks.targets import NAMES, Spec

# Default batch sizes by device and network: on a CPU what takes a few minutes on two cores, on a GPU those of `AIMS`.
_BATCHES = {
    "cpu": {"wrn32-10": [32], "resnet50": [8], "": [64]},
    "cuda": {"resnet50": [32, 128], "": [128, 512]},
}
# With --quick nothing is compiled.
_QUICK = ("plain-loop", "exact", "bf16")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    add("--width", type=positive, metavar="W", help="of resnet18 and wrn32-10")
    add("--batch-sizes", nargs="+", type=positive, metavar="N")
    add(
        "--cases", nargs="+", type=_case, metavar="NAME:N", help="networks at batch sizes, in order"
    )
    add("--steps", type=positive, metavar="K", help="10")
    registry.add_device(parser)
    add("--rounds", type=positive, metavar="N", help="timed calls of each (5; cuda 20)")
    add("--only", nargs="+", metavar="NAME", help="these providers; --list names all")
    add("--list", action="store_true", help="print the providers and exit")
    add("--compile", action="store_true", help="also torch.compile, which takes minutes")
    add(
        "--contiguous",
        action="store_true",
        help="contiguous weights for all providers, not each peer's best",
    )
    registry.add_tf32(parser)
    add(
        "--cudnn-benchmark",
        action="store_true",
        help="cuDNN tries its algorithms for all providers, without measuring whether that helps",
    )
    add("--data", type=Path, metavar="NPZ", help="images; else IAAT_FAST_DATA, else random ones")
    registry.add_time_limit(parser)
    add("--no-profile", action="store_true", help="without the device time by kind")


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data: {options.data}, expected an .npz file of images")
    known = providers_of(argparse.Namespace(**{**vars(options), "only": None}))
    unknown = set(options.only or ()) - {provider.name for provider in known}
    if unknown:
        names = ", ".join(provider.name for provider in known)
        parser.error(f"--only: {min(unknown)}, expected some of {names}")
    for flag in ("models", "batch_sizes"):
        if options.cases is not None and getattr(options, flag):
            parser.error(f"--cases: expected no --{flag.replace('_', '-')} next to it")
    rounds = 5 if options.device == "cpu" else 20
    registry.defaults(
        options,
        models=([targets.SMALL], list(targets.RANDOM)),
        steps=(2, 10),
        rounds=(2, rounds),
        only=(_QUICK, None),
    )
    if options.cases is None:
        options.cases = [(model, n) for model in options.models for n in _batches(options, model)]
    if options.list:
        for provider in providers_of(options):
            print(f"{provider.name:28} {provider.precision:5} {provider.what}")
        parser.exit(0)


def providers_of(options: argparse.Namespace) -> list[Provider]:
    """The loops, other libraries and iaat_fast's engines that are asked for."""
    device = torch.device(options.device)
    tf32 = options.device == "cuda" and options.tf32 == "allowed"
    known = [*LOOPS, *PEERS, EXPERT, *engines(device, tf32=tf32, with_compile=options.compile)]
    return [each for each in known if options.only is None or each.name in options.only]


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    """Every case with its most important profiles; at the end all other profiles, which take long and matter less."""
    registry.set_tf32(options)
    setting = Setting(steps=options.steps)
    competing = providers_of(options)
    record.facts |= {"attack": dataclasses.asdict(setting), "peers": providers.versions()}
    record.facts["providers"] = {provider.name: provider.what for provider in competing}
    later: list[tuple[str, int, Row]] = []

    def profiles(some: list[tuple[str, int, Row]]) -> Iterator[Row]:
        for model, size, row in some:
            if not record.out_of_time(f"profile of {row.provider}, {row.case}"):
                spent = race.profile(model, size, row)
                if spent is not None:
                    yield spent

    with contextlib.ExitStack() as workers:
        race = Race(options, competing, setting, record, workers)
        for number, (model, size) in enumerate(options.cases, 1):
            name = f"{model}, batch {size}"
            if record.out_of_time(name):
                continue
            say(f"{number}/{len(options.cases)} {name}")
            timed = []
            for row in race.run(model, size):
                yield row
                if row.metric == "time" and row.status == "ok" and not options.no_profile:
                    timed.append((model, size, row))
            best = {case["best_peer"] for case in record.facts["targets"].values()}
            wanted = [each for each in timed if each[2].provider in ("bf16", *best)]
            yield from profiles(wanted)
            later += [each for each in timed if each not in wanted]
            if options.device == "cuda":
                torch.cuda.empty_cache()
        yield from profiles(later)


def calls() -> registry.Calls:
    """PGD on ResNet-18 of width 64, of two steps only, since all steps take the same time."""
    target, _ = Spec(model="resnet18", batch=64, device="cpu").build()
    found = {}
    for provider in [*PEERS, *engines(target.x.device, tf32=False, with_compile=False)]:
        if provider.name in ("torchattacks", "exact", "fast", "bf16"):
            with contextlib.suppress(Missing):
                attack = provider.make(target, Setting(steps=2))
                found[provider.name] = lambda attack=attack: attack(target.x, target.y)
    return {"PGD-2, resnet18, batch 64": found}


def _batches(options: argparse.Namespace, model: str) -> list[int]:
    """The batch sizes of a network."""
    if options.batch_sizes is not None:
        sizes: list[int] = options.batch_sizes
        return sizes
    if options.quick:
        return [8]
    by_model = _BATCHES[options.device]
    return by_model.get(model, by_model[""])


def _case(text: str) -> tuple[str, int]:
    name, _, size = text.partition(":")
    if name not in NAMES or not size.isdecimal() or int(size) < 1:
        raise argparse.ArgumentTypeError(
            f"{text}, expected NAME:N, NAME one of {', '.join(NAMES)}, N at least 1"
        )
    return name, int(size)
