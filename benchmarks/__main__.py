"""`python -m benchmarks NAME|all [--quick] [--base REV]`: measure, print tables, write the record."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarks import base, machine, registry
from benchmarks.record import Record, draw, numbered
from benchmarks.registry import BENCHMARKS

USAGE = (
    "usage: python -m benchmarks NAME|all [--quick] [--base REV] [...]; NAME --help has the rest\n"
    "       python -m benchmarks figure RECORD [RECORD ...] --out FILE.svg"
)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns 0, 1 if a row is wrong or failed, or 2 for bad arguments."""
    if not argv or argv[0] in ("--list", "--help", "-h"):
        print(USAGE)
        print("\n".join(f"  {name:12} {text}" for name, text in BENCHMARKS.items()))
        return 0 if argv else 2
    name, *rest = argv
    if name == "figure":
        return _figure(rest)
    if name not in (*BENCHMARKS, "all"):
        known = ", ".join((*BENCHMARKS, "all"))
        print(f"python -m benchmarks: error: {name}, expected one of {known}", file=sys.stderr)
        return 2
    options = registry.parse(name, rest)
    try:
        if name == "all":
            return _all(options, rest)
        if options.base is None:
            return run(name, rest, options)
        with base.built(options.base) as other:
            return run(name, rest, options, other)
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks {name}: error: {error}", file=sys.stderr)
        return 2


def run(name: str, argv: Sequence[str], options: Namespace, other: base.Base | None = None) -> int:
    """Run one benchmark, on this checkout alone or against another revision."""
    device = getattr(options, "device", "cpu")
    path = options.record or numbered(options.out / name, machine.short(device))
    record = Record(name, argv, options, path)
    rows = (
        registry.load(name).measure(options, record)
        if other is None
        else base.compare(other, record, registry.own(argv), options.pairs)
    )
    try:
        for row in rows:
            record.add(row)
    finally:
        if record.rows or record.left_out:
            record.write()
    text = record.markdown()
    if options.record is None:
        path.with_suffix(".md").write_text(text)
        draw(record.rows, record.machine, path.with_suffix(".png"))
    print(text)
    for what in record.left_out:
        print(f"left out after {options.time_limit:g} s: {what}")
    for side, keys in record.facts.get("unmatched", {}).items():
        print("".join(f"not compared, of the {side}: {key}\n" for key in keys), end="")
    bad = [row for row in record.rows if row.status in ("wrong", "failed")]
    for row in bad:
        print(f"{row.status}: {row.provider}, {row.case}: {row.detail}")
    print(f"the record is {path}")
    return 1 if bad else 0


def _figure(argv: Sequence[str]) -> int:
    """Draw records that are there; nothing is measured."""
    from benchmarks import figure

    try:
        return figure.main(argv)
    except (OSError, ValueError) as error:
        print(f"python -m benchmarks figure: error: {error}", file=sys.stderr)
        return 2


def _all(options: Namespace, argv: Sequence[str]) -> int:
    """Run all, each in a process of its own, so that global settings of one do not affect the next."""
    if options.record is not None:
        raise ValueError(f"--record: {options.record}, expected --out FOLDER with all")
    statuses = {}
    with contextlib.ExitStack() as stack:
        other = options.base and stack.enter_context(base.built(options.base))
        for name in BENCHMARKS:
            print(f"== {name}", flush=True)
            if other:
                try:
                    parsed = registry.parse(name, argv)
                    statuses[name] = run(name, argv, parsed, other)
                except (OSError, ValueError) as error:
                    print(f"python -m benchmarks {name}: error: {error}", file=sys.stderr)
                    statuses[name] = 2
                except SystemExit as stop:  # its arguments were refused
                    statuses[name] = int(stop.code or 0)
            else:
                command = [sys.executable, "-m", "benchmarks", name, *argv]
                statuses[name] = subprocess.run(command, cwd=Path.cwd()).returncode
    bad = [f"{name} ({status})" for name, status in statuses.items() if status]
    print(f"not ok: {', '.join(bad)}" if bad else "all ok")
    return max(statuses.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
