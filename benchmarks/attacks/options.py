"""The command line of the attack benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.attacks import networks
from benchmarks.attacks.contender import Contender
from benchmarks.attacks.engines import engines
from benchmarks.attacks.expert import EXPERT
from benchmarks.attacks.loops import LOOPS
from benchmarks.attacks.peers import PEERS

# Batch sizes by device and network where none are given: what fits a few minutes on two cores, and the GPU's targets.
_BATCHES = {
    "cpu": {"wrn32-10": [32], "resnet50": [8], "": [64]},
    "cuda": {"resnet50": [32, 128], "": [128, 512]},
}


class Parser(argparse.ArgumentParser):
    """Errors are one line and status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, completed: device, contenders, and a list of batch sizes for every network."""
    parser = Parser(
        prog="python -m benchmarks.attacks",
        description="Time PGD by iaat_fast, at every setting of its engine, against plain loops and other libraries. "
        "Writes attacks.json, attacks.md and a figure per network; with --survivors survivors.json and survivors.md.",
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=networks.NAMES, metavar="NAME", help=_known(networks.NAMES))
    add("--width", type=positive, metavar="W", help="of resnet18 and wrn32-10")
    add("--batch-sizes", nargs="+", type=positive, metavar="N")
    add(
        "--cases", nargs="+", type=_case, metavar="NAME:N", help="networks at batch sizes, in order"
    )
    add("--steps", type=positive, metavar="K", help="10; 100 with --survivors")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--rounds", type=positive, metavar="N", help="timed calls of each (5; cuda 20)")
    add("--only", nargs="+", metavar="NAME", help="these contenders; --list names all")
    add("--list", action="store_true", help="print the contenders and exit")
    add("--compile", action="store_true", help="also torch.compile, which takes minutes")
    add(
        "--contiguous",
        action="store_true",
        help="weights contiguous for everyone, not each peer's best",
    )
    add("--tf32", choices=("allowed", "off"), default="allowed", help="for everyone, on cuda")
    add(
        "--cudnn-benchmark",
        action="store_true",
        help="cuDNN tries its algorithms for everyone, untried whether it pays",
    )
    add("--data", type=Path, metavar="NPZ", help="images; else IAAT_FAST_DATA, else random ones")
    add("--time-limit", type=float, default=float("inf"), metavar="S", help="start no case after")
    add("--quick", action="store_true", help="a small network, few steps: does it work?")
    add("--out", type=Path, default=Path("build/attacks"), metavar="FOLDER")
    add("--record-only", action="store_true", help="write attacks.json alone")
    add("--no-profile", action="store_true", help="without the device time by kind")
    survivors = parser.add_argument_group("restarts on survivors")
    add = survivors.add_argument
    add("--survivors", action="store_true", help="measure this instead, on a checkpoint")
    add("--images", type=positive, default=1000, metavar="N", help="test images (1000)")
    add("--restarts", type=positive, default=5, metavar="N", help="5")
    options = parser.parse_args(argv)
    _complete(parser, options)
    return options


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Loops, other libraries, and iaat_fast's engines, as far as they are asked for."""
    device = torch.device(options.device)
    tf32 = options.device == "cuda" and options.tf32 == "allowed"
    known = [*LOOPS, *PEERS, EXPERT, *engines(device, tf32=tf32, with_compile=options.compile)]
    return [c for c in known if options.only is None or c.name in options.only]


def set_precision(options: argparse.Namespace) -> None:
    """TF32 for everyone or for nobody, in this process."""
    if options.device == "cuda":
        allowed = options.tf32 == "allowed"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def cases(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Networks and batch sizes, in the order in which they are measured."""
    if options.cases is not None:
        named: list[tuple[str, int]] = options.cases
        return named
    return [(model, size) for model in options.models for size in batch_sizes(options, model)]


def batch_sizes(options: argparse.Namespace, model: str) -> list[int]:
    """The batch sizes of a network."""
    if options.batch_sizes is not None:
        sizes: list[int] = options.batch_sizes
        return sizes
    if options.quick:
        return [16]
    by_model = _BATCHES[options.device]
    return by_model.get(model, by_model[""])


def _complete(parser: Parser, options: argparse.Namespace) -> None:
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data}: no such file, expected an .npz of images")
    if options.only is not None:
        known = [contender.name for contender in contenders(_everything(options))]
        unknown = [name for name in options.only if name not in known]
        if unknown:
            parser.error(f"--only {unknown[0]}: expected some of {', '.join(known)}")
    if options.cases is not None:
        for flag in ("models", "batch_sizes", "survivors"):
            if getattr(options, flag):
                parser.error(f"--cases: expected no --{flag.replace('_', '-')} next to it")
    if options.survivors:
        options.models = options.models or ["resnet4b"]
        random = [name for name in options.models if name not in networks.CHECKPOINTS]
        if random:
            known = networks.CHECKPOINTS
            parser.error(f"--survivors --models {random[0]}: expected {_known(known)}")
        options.steps = options.steps or (10 if options.quick else 100)
        options.rounds = options.rounds or (1 if options.quick else 3)
        options.images = min(options.images, 64) if options.quick else options.images
        return
    options.models = options.models or (["resnet18"] if options.quick else list(networks.RANDOM))
    options.width = options.width or (8 if options.quick else None)
    options.steps = options.steps or (3 if options.quick else 10)
    options.rounds = options.rounds or (
        2 if options.quick else 5 if options.device == "cpu" else 20
    )


def _everything(options: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), "only": None})


def _known(names: Sequence[str]) -> str:
    return ", ".join(names)


def _case(text: str) -> tuple[str, int]:
    name, _, size = text.partition(":")
    if name not in networks.NAMES or not size.isdecimal() or int(size) < 1:
        raise argparse.ArgumentTypeError(
            f"{text}, expected NAME:N, NAME one of {_known(networks.NAMES)}, N at least 1"
        )
    return name, int(size)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
    return value
