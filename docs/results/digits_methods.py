"""Makes `digits-methods.json` of the sweeps named as arguments, and prints the tables of `digits-methods.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from iaat_fast.evaluate.results import wilson
from iaat_fast.report.groups import group
from iaat_fast.report.records import RunRecord, read_record
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.folder import SweepFolder

KINDS = ("natural", "pgd", "autoattack")
MEASURED = ("accuracy", "correct", "samples", "interval_95", "seconds")
MISSING = "not measured"


def records(sweep: str) -> Iterator[dict[str, Any]]:
    """A record of each run that a sweep has planned; what has not been trained or measured is left out of it."""
    for run in SweepFolder(sweep).recorded():
        command = ["python -m iaat_fast.train", *run.words, "--out", f"RUNS/{run.name}"]
        record = {"name": run.name, "seed": run.seed, "command": " ".join(command)}
        folder = RunFolder(run.folder)
        yield {**record, **(results(read_record(folder)) if folder.is_run else {})}


def results(run: RunRecord) -> dict[str, Any]:
    """What a run has come to; {} while it is in training."""
    if run.epochs_done < run.config["optim.epochs"]:
        return {}
    measured = run.evaluation.measurements if run.evaluation else ()
    last = run.metrics[-1]
    return {
        "method": group([run])[0].variants[0].name,
        "commit": run.env["commit"],
        "time": run.env["time"],
        "training_seconds": round(sum(each["seconds"] for each in run.metrics), 1),
        "eps_mean": last["eps_mean"],
        "eps_std": last["eps_std"],
        **{m.kind: {name: m.row[name] for name in MEASURED} for m in measured},
    }


def over_seeds(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The cells of a method: means over its seeds, with 95 % Wilson intervals over the test images that they share."""
    cells = []
    for kind in KINDS:
        found = [run[kind] for run in runs if kind in run]
        if not found:
            cells.append(MISSING)
            continue
        low, high = wilson(mean(each["correct"] for each in found), found[0]["samples"])
        shares = [100 * each["accuracy"] for each in found]
        spread = f" ± {stdev(shares):.2f}" if len(shares) > 1 else ""
        seeds = "" if len(found) == len(runs) else f" ({len(found)} of {len(runs)} seeds)"
        cells.append(f"{mean(shares):.2f}{spread} [{100 * low:.1f}, {100 * high:.1f}]{seeds}")
    return [*cells, f"{255 * mean(run['eps_mean'] for run in runs):.2f}"]


def tables(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of both tables of the document: by method, and by run."""
    heads = ["natural (%)", "PGD-10 × 5 (%)", "AutoAttack (%)", "mean ε (1/255)"]
    trained = [run for run in runs if "method" in run]
    methods = dict.fromkeys(run["method"] for run in trained)
    by_method = {name: [run for run in trained if run["method"] == name] for name in methods}
    lines = _table(
        ["method", "seeds", *heads],
        [[name, len(those), *over_seeds(those)] for name, those in by_method.items()],
    )
    rows = []
    for run in trained:
        shares = [
            f"{100 * run[kind]['accuracy']:.2f}" if kind in run else MISSING for kind in KINDS
        ]
        radius = " ± ".join(f"{255 * run[name]:.2f}" for name in ("eps_mean", "eps_std"))
        rows.append([run["method"], run["seed"], *shares, radius])
    return [*lines, "", *_table(["method", "seed", *heads], rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown; all columns but the first are numbers."""
    ruler = f"|---|{'---:|' * (len(heads) - 1)}"
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows))
    return [first, ruler, *others]


def main(sweeps: Sequence[str]) -> None:
    runs = [record for sweep in sweeps for record in records(sweep)]
    trained = next(run for run in runs if "method" in run)
    env = read_record(RunFolder(Path(sweeps[0]) / trained["name"])).env
    of_one_run = ("command", "time", "commit")
    environment = {name: value for name, value in env.items() if name not in of_one_run}
    content = {"environment": environment, "runs": runs}
    Path(__file__).with_name("digits-methods.json").write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join(tables(runs)))


if __name__ == "__main__":
    main(sys.argv[1:])
