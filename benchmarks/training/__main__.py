"""`python -m benchmarks.training`: milliseconds of training steps, against the authors' amount of work."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.attacks import tables
from benchmarks.attacks.options import Parser, positive
from benchmarks.training.cases import NETWORKS, WANTED, Case, cases
from benchmarks.training.measure import Course, Record, best_authors, measure

COLUMNS = ("step", "ms p50 [p20, p80]", "epoch, s", "× authors", "correct", "after the attack")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, completed."""
    parser = Parser(
        prog="python -m benchmarks.training",
        description="Time steps of clean, adversarial and instance adaptive training, each in turn with the authors' "
        "amount of work. Writes training.json and training.md.",
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--only", nargs="+", metavar="CASE", help="these cases; --list names all")
    add("--list", action="store_true", help="print the cases and exit")
    add("--batch-size", type=positive, metavar="N", help="128")
    add("--steps", type=positive, metavar="K", help="of the attacks: 10")
    add("--rounds", type=positive, metavar="N", help="timed calls of each: 3; cuda 7")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--tf32", choices=("allowed", "off"), default="allowed", help="for everyone, on cuda")
    add("--time-limit", type=float, default=float("inf"), metavar="S", help="start no case after")
    add("--quick", action="store_true", help="a small network, few steps: does it work?")
    add("--out", type=Path, default=Path("build/training"), metavar="FOLDER")
    add("--record-only", action="store_true", help="write training.json alone")
    options = parser.parse_args(argv)
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    known = [case.name for case in cases()]
    unknown = [name for name in options.only or [] if name not in known]
    if unknown:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(known)}")
    options.batch_size = options.batch_size or (8 if options.quick else 128)
    options.steps = options.steps or (2 if options.quick else 10)
    options.rounds = options.rounds or (
        2 if options.quick else 7 if options.device == "cuda" else 3
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Run; 0 if every case ran, else 1."""
    options = parse(argv)
    some = [case for case in cases() if options.only is None or case.name in options.only]
    if options.list:
        print("\n".join(case.name for case in some))
        return 0
    if options.device == "cuda":
        allowed = options.tf32 == "allowed"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    options.out.mkdir(parents=True, exist_ok=True)
    result = run(options, argv, some)
    for name in result["left_out"]:
        print(f"left out after {options.time_limit:g} s: {name}")
    bad = [record for record in result["records"] if record["status"] != "ok"]
    for record in bad:
        print(f"failed: {record['network']}, {record['name']}: {record['detail']}")
    return 1 if bad else 0


def run(options: argparse.Namespace, argv: Sequence[str], some: Sequence[Case]) -> dict[str, Any]:
    """All cases; files are written after each, so that a stopped run leaves what it has."""
    started = time.perf_counter()
    result: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.training", *argv],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": machine.describe(options.device),
        "setting": {"batch": options.batch_size, "steps": options.steps, "rounds": options.rounds},
        "left_out": [],
        "authors": {},
        "records": [],
    }
    if options.device == "cuda":
        result["setting"]["tf32"] = options.tf32
    # What is most wanted of every network comes before the rest of the first.
    wanted = [
        (network, [case for case in some if (case.name in WANTED[:4]) is first])
        for first in (True, False)
        for network in options.networks
    ]
    for network, mine in wanted:
        if not mine:
            continue
        if time.perf_counter() - started > options.time_limit:
            result["left_out"] += [f"{network}, {case.name}" for case in mine]
            continue
        course = Course(
            network=network,
            device=torch.device(options.device),
            width=4 if options.quick else None,
            batch=options.batch_size,
            rounds=options.rounds,
            steps=2 if options.device == "cuda" else 1,
            pgd=options.steps,
        )
        net, data, source = course.build()
        authors, seconds, layout = best_authors(course, net, data)
        result["authors"].setdefault(network, {"seconds": seconds, "taken": layout})
        result["images"] = source
        for case in mine:
            if time.perf_counter() - started > options.time_limit:
                result["left_out"].append(f"{network}, {case.name}")
                continue
            print(f"{network}, {case.name}", file=sys.stderr, flush=True)
            result["records"].append(measure(course, case, net, data, authors))
            result["seconds"] = round(time.perf_counter() - started, 1)
            _write(options, result)
            if options.device == "cuda":
                torch.cuda.empty_cache()
        _show(network, result)
    result["records"] = [dataclasses.asdict(record) for record in result["records"]]
    return result


def row(record: Record) -> list[str]:
    """The record under `COLUMNS`."""
    if record.p50_s is None:
        return [record.name, record.status, *[""] * 4]
    low, middle, high = (1e3 * (part or 0.0) for part in (record.p20_s, record.p50_s, record.p80_s))
    return [
        record.name,
        f"{middle:.4g} [{low:.4g}, {high:.4g}]",
        f"{record.epoch_s:.3g}",
        f"{record.over_authors:.2f}",
        *("" if share is None else f"{share:.0%}" for share in (record.clean, record.robust)),
    ]


def _rows(network: str, result: dict[str, Any]) -> list[list[str]]:
    return [row(record) for record in result["records"] if record.network == network]


def _authors(network: str, result: dict[str, Any]) -> str:
    found = result["authors"][network]
    tried = ", ".join(
        f"{1e3 * seconds:.4g} ms {name}" for name, seconds in found["seconds"].items()
    )
    return f"authors' loop: {tried}; raced {found['taken']}"


def _show(network: str, result: dict[str, Any]) -> None:
    batch = result["setting"]["batch"]
    tables.write(f"training steps, {network}, batch {batch}", COLUMNS, _rows(network, result))
    print(_authors(network, result))


def _write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    records = [dataclasses.asdict(record) for record in result["records"]]
    text = json.dumps({**result, "records": records}, indent=1) + "\n"
    (options.out / "training.json").write_text(text)
    if options.record_only:
        return
    parts = ["# Training steps\n", tables.facts({**result["machine"], **result["setting"]})]
    for network in result["authors"]:
        parts += [f"## {network}\n", f"{_authors(network, result)}\n"]
        parts += [tables.table(COLUMNS, _rows(network, result))]
    (options.out / "training.md").write_text("\n".join(parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
