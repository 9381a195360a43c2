"""The benchmarks by name. Each is a module or package of its name with `arguments`, `complete` and `measure`."""

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
    "training": "steps of training, against the authors' amount of work",
    "suite": "the protocol's white-box suite, against torchattacks",
    "autoattack": "AutoAttack, against pyautoattack",
    "decoding": "images per second from JPEG files to batches",
    "distributed": "two ranks against one, their exchange and their checkpoints",
    "plan": "predictions of iaat_fast.plan, against this machine and the paper's Table 9",
}

Calls = Mapping[str, Mapping[str, Callable[[], object]]]


class Benchmark(Protocol):
    """What a module of `benchmarks` has to be one. It may also have `calls`, which `make bench` times."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the benchmark's own arguments."""

    def complete(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        """Fill in the defaults that depend on others, such as `--quick`; `parser.error` where some do not fit."""

    def measure(self, options: argparse.Namespace, record: Record) -> Iterator[Row]:
        """The rows, one by one.

        Raises:
            OSError, ValueError: something that is needed is not there; the message is one line.
        """


class Parser(argparse.ArgumentParser):
    """Errors are one line and status 2; flags are written out."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def load(name: str) -> Benchmark:
    """The benchmark of a name; nothing of the others is imported."""
    return cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))


def calls(name: str) -> Calls:
    """The single calls of a benchmark, by case and provider; none where it has no `calls`."""
    found: Calls = getattr(load(name), "calls", dict)()
    return found


def parse(name: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a benchmark, completed; of "all" those that all share."""
    parser = Parser(
        prog=f"python -m benchmarks {name}",
        description=BENCHMARKS.get(name, "All benchmarks, each in a process of its own."),
        parents=[_driver()],
    )
    parser.add_argument("--quick", action="store_true", help="small and short: does it work?")
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
    """The arguments that are the benchmark's own, and not the driver's."""
    return _driver().parse_known_args(argv)[1]


def _driver() -> Parser:
    """The arguments that all benchmarks share: another revision to measure, and where the record is written."""
    parser = Parser(add_help=False)
    add = parser.add_argument
    add("--base", metavar="REV", help="measure this revision of iaat_fast too, in turn")
    add("--pairs", type=positive, metavar="N", help="of processes with --base: 5 (quick 2)")
    add("--out", type=Path, default=Path("build/benchmarks"), metavar="FOLDER")
    add("--record", type=Path, metavar="FILE", help="write the JSON record alone, here")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="default: cuda where there is one"
    )


def add_tf32(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tf32", choices=("allowed", "off"), default="allowed", help="for everyone, on cuda"
    )


def set_tf32(options: argparse.Namespace) -> None:
    """TF32 for everyone or for no one, in this process."""
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
    """Fill in what was not given: name=(quick, usual)."""
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
