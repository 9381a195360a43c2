"""`python -m benchmarks.attacks`: measure, print tables, write records and figures."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import machine
from benchmarks.attacks import images, networks, peers, plot, survivors, tables
from benchmarks.attacks import options as command_line
from benchmarks.attacks.contender import Setting
from benchmarks.attacks.measure import Case, Record
from benchmarks.attacks.options import contenders, parse, set_precision
from benchmarks.attacks.race import Race


def main(argv: Sequence[str]) -> int:
    """Run; 0 if every contender that is installed was right and ran, else 1."""
    options = parse(argv)
    if options.list:
        for contender in contenders(options):
            print(f"{contender.name:28} {contender.precision:5} {contender.what}")
        return 0
    set_precision(options)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        return run_survivors(options, argv) if options.survivors else run(options, argv)
    except (FileNotFoundError, ValueError) as error:
        print(f"python -m benchmarks.attacks: error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Every case, then its most wanted profiles; then all others, which take the longest and tell the least.

    Files are written after each, so that a stopped run leaves what it has.
    """
    started = time.perf_counter()
    setting = Setting(steps=options.steps)
    competing = contenders(options)
    header = _header(options, argv, setting)
    header |= {"peers": peers.versions(), "left_out": []}
    wanted = command_line.cases(options)
    cases: list[Case] = []

    def profile(case: Case, records: Sequence[Record]) -> None:
        for record in [] if options.no_profile else records:
            if record.status != "ok":
                continue
            if time.perf_counter() - started > options.time_limit:
                header["left_out"].append(f"profile of {record.name}, {tables.title(case)}")
                continue
            race.profile(case, record)
            note()

    def note() -> None:
        header["seconds"] = round(time.perf_counter() - started, 1)
        _write(options, header, cases)

    with contextlib.ExitStack() as workers:
        race = Race(options, argv, competing, setting, workers)
        header["matmul_flops_per_s"] = race.rates
        for number, (model, size) in enumerate(wanted, 1):
            name = f"{model}, batch {size}"
            if time.perf_counter() - started > options.time_limit:
                header["left_out"].append(name)
                continue
            _say(f"{number}/{len(wanted)} {name}")
            case = race.run(model, size)
            cases.append(case)
            note()
            tables.show(case)
            profile(case, [r for r in case.records if r.name in ("bf16", case.best_peer)])
            if options.device == "cuda":
                torch.cuda.empty_cache()
        for case in cases:
            profile(case, [record for record in case.records if record.device_time is None])
            tables.show_kinds(case)
    note()
    what = "attacks.json is" if options.record_only else "attacks.json, attacks.md and figures are"
    print(f"{what} in {options.out}")
    for name in header["left_out"]:
        print(f"left out after {options.time_limit:g} s: {name}")
    bad = [(case, r) for case in cases for r in case.records if r.status in ("wrong", "failed")]
    for case, record in bad:
        print(f"{record.status}: {record.name}, {tables.title(case)}: {record.detail}")
    return 1 if bad else 0


def run_survivors(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Restarts on survivors against restarts on everyone; 1 if a verdict differs from the plain loop's."""
    setting = Setting(steps=options.steps)
    header = _header(options, argv, setting)
    parts = ["# Restarts on survivors\n", tables.facts({**header["machine"], **header["setting"]})]
    results: list[dict[str, Any]] = []
    status = 0
    for model in options.models:
        x, y, source = images.load(options.images, 32, options.data)
        if y is None:
            raise FileNotFoundError("--survivors needs real images: --data or IAAT_FAST_DATA")
        x, y = x.to(options.device), y.to(options.device)
        net = networks.make(model, x)
        for size in options.batch_sizes or [250]:
            title = f"{model}, {len(x)} images in batches of {size}, PGD-{setting.steps} x {options.restarts}"
            _say(title)
            restarts = survivors.Restarts(net, x, y, setting, options.restarts, size)
            records = survivors.measure(restarts, rounds=options.rounds)
            cells = [survivors.row(record) for record in records]
            tables.write(title, survivors.COLUMNS, cells)
            parts += [
                f"## {title}\n",
                f"images: {source}\n",
                tables.table(survivors.COLUMNS, cells),
            ]
            what = {"model": model, "images": source, "samples": len(x), "batch": size}
            what |= {"restarts": options.restarts, "precision": "fp32"}
            results.append({**what, "records": [dataclasses.asdict(r) for r in records]})
            if any(r.same_verdicts < 1 for r in records if r.last_iterate):
                print("verdicts differ from the plain loop's")
                status = 1
    result = {**header, "cases": results}
    (options.out / "survivors.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "survivors.md").write_text("\n".join(parts))
    print(f"survivors.json and survivors.md are in {options.out}")
    return status


def _header(options: argparse.Namespace, argv: Sequence[str], setting: Setting) -> dict[str, Any]:
    how = {"rounds": options.rounds, "device": options.device, "contiguous": options.contiguous}
    if options.device == "cuda":
        how |= {"tf32": options.tf32, "cudnn_benchmark": options.cudnn_benchmark}
    return {
        "command": ["python", "-m", "benchmarks.attacks", *argv],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": machine.describe(options.device),
        "setting": {**dataclasses.asdict(setting), **how},
    }


def _write(options: argparse.Namespace, header: dict[str, Any], cases: Sequence[Case]) -> None:
    result = {**header, "cases": [dataclasses.asdict(case) for case in cases]}
    (options.out / "attacks.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.record_only:
        return
    known = {name: version or "missing" for name, version in header["peers"].items()}
    settings = {**header["setting"], **known, "command": " ".join(header["command"])}
    (options.out / "attacks.md").write_text(tables.markdown(header["machine"], settings, cases))
    for model in dict.fromkeys(case.model for case in cases):
        mine = [case for case in cases if case.model == model]
        plot.draw(mine, header["machine"], options.out / f"attacks-{model}.png")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
