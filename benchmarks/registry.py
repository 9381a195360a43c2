"""The benchmarks by name, each a module or package of that name (see `Benchmark`), and their arguments."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import torch

from benchmarks.record import Record, Row

BENCHMARKS = {
    "ops": "the ops and a training step's own work against eager torch and a copy, on the CPU",
    "kernels": "every op on every backend, against a copy, eager torch and torch.compile",
    "attacks": "PGD at every setting of the engine, against plain loops and other libraries",
    "survivors": "restarts on the samples not fooled yet, against restarts on all",
    "memory": "peak memory of an attack on the CPU",
    "precisions": "verdicts of attacks in half precision, against fp32",
    "networks": "networks of torchvision, timm and transformers through the engine, against plain loops",
    "trace": "PGD that keeps the loss and success of every iteration, against SecML-Torch",
    "training": "steps of training, against the authors' amount of work",
    "suite": "the protocol's white-box suite, against torchattacks",
    "autoattack": "AutoAttack, against pyautoattack",
    "decoding": "images per second from JPEG files to batches",
    "distributed": "two ranks against one, their exchange and their checkpoints",
    "plan": "predictions of iaat_fast.plan, against this machine and the paper's Table 9",
}

Calls = Mapping[str, Mapping[str, Callable[[], object]]]


class Benchmark(Protocol):
    """The functions of a benchmark's module. It may also have `calls`, which `make bench` times."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the benchmark's own arguments."""

    def complete(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        """Fill in defaults that depend on other arguments, such as `--quick`; call `parser.error` for bad arguments."""

    def measure(self, options: argparse.Namespace, record: Record) -> Iterator[Row]:
        """The rows, one by one.

        Raises:
            OSError, ValueError: something that it needs is missing; the message is one line.
        """


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with status 2, and whose flags cannot be abbreviated."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def load(name: str) -> Benchmark:
    """Import and return the benchmark of a name."""
    return cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))


def calls(name: str) -> Calls:
    """The single calls of a benchmark, by case and provider; {} if it has no `calls`."""
    found: Calls = getattr(load(name), "calls", dict)()
    return found


def parse(name: str, argv: Sequence[str]) -> argparse.Namespace:
    """The parsed and completed arguments of a benchmark; for "all", those that all benchmarks share."""
    parser = Parser(
        prog=f"python -m benchmarks {name}",
        description=BENCHMARKS.get(name, "All benchmarks, each in a process of its own."),
        parents=[_driver()],
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and short, to see that it works"
    )
    if name not in BENCHMARKS:
        options = parser.parse_args(argv)
    else:
        benchmark = load(name)
        benchmark.arguments(parser)
        options = parser.parse_args(argv)
        if getattr(options, "device", "") is None:
            options.device = "cuda" if torch.cuda.is_available() else "cpu"
        if getattr(options, "device", "") == "cuda" and not torch.cuda.is_available():
            parser.error("--device: cuda, but torch sees no CUDA device")
        benchmark.complete(parser, options)
    if options.pairs is not None and options.base is None:
        parser.error(f"--pairs: {options.pairs}, expected only with --base")
    options.pairs = options.pairs or (2 if options.quick else 5)
    return options


def own(argv: Sequence[str]) -> list[str]:
    """The arguments without those of `_driver`."""
    return _driver().parse_known_args(argv)[1]


def _driver() -> Parser:
    """The arguments that all benchmarks share: another revision to compare with, and where the record is written."""
    parser = Parser(add_help=False)
    add = parser.add_argument
    add("--base", metavar="REV", help="measure this revision of iaat_fast too, in turn")
    add("--pairs", type=positive, metavar="N", help="of processes with --base: 5 (quick 2)")
    add("--out", type=Path, default=Path("build/benchmarks"), metavar="FOLDER")
    add("--record", type=Path, metavar="FILE", help="write the JSON record alone, here")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")


def add_tf32(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tf32", choices=("allowed", "off"), default="allowed", help="for all providers, on cuda"
    )


def set_tf32(options: argparse.Namespace) -> None:
    """Allow or forbid TF32 for all providers, in this process."""
    if options.device == "cuda":
        allowed = options.tf32 == "allowed"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def add_time_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--time-limit",
        type=float,
        default=float("inf"),
        metavar="S",
        help="start nothing more after S seconds",
    )


def defaults(options: argparse.Namespace, **values: tuple[Any, Any]) -> None:
    """Fill in arguments that were not given: name=(value with --quick, usual value)."""
    for name, (quick, usual) in values.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected a whole number of at least 1")
    return value
