"""Training steps of iaat_fast against plain PyTorch that does the same work as the authors' released code."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from benchmarks import registry
from benchmarks.record import Record, Row, say
from benchmarks.registry import positive
from benchmarks.training.measuring import (
    NETWORKS,
    WANTED,
    Workload,
    best_authors,
    cases,
    measure_case,
)

# With --quick, one case of each method.
_QUICK = ("iaat batched exact bf16", "adv fp32", "clean fp32")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS)
    add("--only", nargs="+", metavar="CASE", help="these cases; --list names all")
    add("--list", action="store_true", help="print the cases and exit")
    add("--batch-size", type=positive, metavar="N", help="128")
    add("--steps", type=positive, metavar="K", help="of the attacks: 10")
    add("--rounds", type=positive, metavar="N", help="timed calls of each: 3; cuda 7")
    registry.add_device(parser)
    registry.add_tf32(parser)
    registry.add_time_limit(parser)


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    known = [case.name for case in cases()]
    unknown = set(options.only or ()) - set(known)
    if unknown:
        parser.error(f"--only: {min(unknown)}, expected some of {', '.join(known)}")
    registry.defaults(
        options,
        networks=(list(NETWORKS[:1]), list(NETWORKS)),
        only=(_QUICK, known),
        batch_size=(8, 128),
        steps=(2, 10),
        rounds=(2, 7 if options.device == "cuda" else 3),
    )
    if options.list:
        print("\n".join(name for name in known if name in options.only))
        parser.exit(0)


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    """All cases: first the most important ones of every network, then the others."""
    registry.set_tf32(options)
    some = [case for case in cases() if case.name in options.only]
    authors_taken = record.facts["authors_taken"] = {}
    wanted = [
        (network, [case for case in some if (case.name in WANTED[:4]) is first])
        for first in (True, False)
        for network in options.networks
    ]
    for network, mine in wanted:
        left = [case for case in mine if not record.out_of_time(f"{network}, {case.name}")]
        if not left:
            continue
        workload = Workload(
            network=network,
            device=torch.device(options.device),
            width=4 if options.quick else None,
            depth=10 if options.quick else None,
            batch=options.batch_size,
            rounds=options.rounds,
            steps=2 if options.device == "cuda" else 1,
            pgd=options.steps,
        )
        net, data, record.facts["images"] = workload.build()
        authors, rows, layout = best_authors(workload, net, data)
        if network not in authors_taken:
            yield from rows
        authors_taken.setdefault(network, layout)
        for case in left:
            if record.out_of_time(f"{network}, {case.name}"):
                continue
            say(f"{network}, {case.name}")
            yield measure_case(workload, case, net, data, authors)
            if options.device == "cuda":
                torch.cuda.empty_cache()
