"""A table of methods: accuracies with intervals, radii and seconds, and the differences from one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.evidence.frontier import REPLICATES, Array, accuracies
from benchmarks.evidence.grid import Grid
from benchmarks.evidence.measured import NATURAL, attacks, by_image, training
from iaat_fast.evaluate.results import wilson
from iaat_fast.storage import replace, write_json
from iaat_fast.sweep.grid import Run

SCHEMA = 1
MISSING = "not measured"


def compare(grid: Grid, runs: Sequence[Run]) -> dict[str, Any]:
    """What each method and each run of it has come to, as `tables` shows it and the record keeps it.

    Every seed that is measured counts, also where other methods lack it. Accuracies are in percent, radii in 1/255.

    Returns:
        "columns", the names of the accuracies; "baseline", the label of the method that the others are compared with;
        "rows", one per method; "trainings", one per run that has been trained. {} if nothing is measured.
    """
    columns = [NATURAL, *reversed(attacks(grid))]
    measured = {run.name: by_image(grid, run) for run in runs}
    trained = {run.name: figures for run in runs if (figures := training(run)) is not None}
    if not trained:
        return {}
    labels = {setting.name: setting.label for setting in grid.settings}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column in columns:
        by_setting = {
            name: np.stack([measured[run.name][column] for run in having])
            for name in labels
            if (having := [r for r in runs if r.setting == name and column in measured[r.name]])
        }
        found[column] = _column(by_setting, grid.baseline)
    own = {
        name: [r.name for r in runs if r.setting == name and r.name in trained] for name in labels
    }
    rows = [
        {
            "setting": name,
            "label": label,
            "seeds": len(own[name]),
            "accuracies": {column: found[column].get(name) for column in columns},
            **_training([trained[run] for run in own[name]]),
        }
        for name, label in labels.items()
    ]
    trainings = [
        {
            "setting": run.setting,
            "label": labels[run.setting],
            "seed": run.seed,
            "accuracies": {
                column: float(verdicts.mean() * 100)
                for column in columns
                if (verdicts := measured[run.name].get(column)) is not None
            },
            **_training([trained[run.name]]),
        }
        for run in runs
        if run.name in trained
    ]
    baseline = labels.get(grid.baseline or "")
    return {"columns": columns, "baseline": baseline, "rows": rows, "trainings": trainings}


def _column(verdicts: Mapping[str, Array], baseline: str | None) -> dict[str, dict[str, Any]]:
    """An accuracy of every method that has it, and its difference from the baseline."""
    if not verdicts:
        return {}
    estimates, cells = accuracies(verdicts), {}
    for name, estimate in estimates.items():
        seeds, images = verdicts[name].shape
        shares = (verdicts[name].mean(1) * 100).tolist()
        cells[name] = {
            "seeds": seeds,
            "value": estimate.value,
            "sd": stdev(shares) if seeds > 1 else None,
            # Of a single seed the images alone vary: an interval that holds near 0 and 100 %.
            "interval_95": list(estimate.interval())
            if seeds > 1
            else [end * 100 for end in wilson(int(verdicts[name].sum()), images)],
        }
        if baseline in estimates and name != baseline:
            apart = estimate.minus(estimates[baseline])
            cells[name]["difference"] = {
                "value": apart.value,
                "interval_95": list(apart.interval()),
            }
    return cells


def _training(figures: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Means over the trainings, radii in 1/255; None without one."""
    names = ("eps_mean", "eps_std", "seconds_per_epoch", "seconds")
    means = {name: mean(each[name] for each in figures) if figures else None for name in names}
    return {
        name: value * 255 if value is not None and name.startswith("eps") else value
        for name, value in means.items()
    }


def write(analysis: Mapping[str, Any], out: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write evidence.md and evidence.json to `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("evidence.md", "evidence.json")]
    replace(paths[0], "\n".join([*_head(analysis, facts), *tables(analysis)]).encode() + b"\n")
    write_json(paths[1], {"schema": SCHEMA, **facts, "replicates": REPLICATES, **analysis})
    return paths


def _head(analysis: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    return [
        f"# {facts['title']}",
        "",
        *(f"    {line}" for line in facts["commands"]),
        "",
        f"{facts['measured']} {facts['seeds']}, the first {facts['images']:,} test images.",
        "",
        "Accuracies are means over the seeds ± their standard deviation, with 95 % intervals by bootstrap over images "
        f"and seeds ({REPLICATES:,} replicates), or of a single seed by Wilson, over the images alone. Differences, in "
        "points, are of the same images, drawn together. Radii are those at the end of the training. Seconds are of "
        "the clock, of the training steps alone, next to the other processes of the command.",
        "",
    ]


def tables(analysis: Mapping[str, Any]) -> list[str]:
    """The lines of the tables, from a record or from what `compare` returns: by method, differences, by run."""
    columns, rows = analysis["columns"], analysis["rows"]
    percent, clock = [f"{column} (%)" for column in columns], ["s per epoch", "s in all"]
    radius = "mean ε (1/255)"
    lines = _table(
        ["method", "seeds", *percent, radius, *clock],
        [
            [
                row["label"],
                row["seeds"],
                *(_accuracy(row["accuracies"][column], row["seeds"]) for column in columns),
                *_figures(row),
            ]
            for row in rows
        ],
    )
    if analysis["baseline"] is not None:
        lines += ["", f"Differences from {analysis['baseline']}:", ""]
        lines += _table(
            ["method", *columns],
            [
                [row["label"], *(_difference(row["accuracies"][column]) for column in columns)]
                for row in rows
                if row["label"] != analysis["baseline"]
            ],
        )
    lines += ["", "The single runs:", ""]
    return lines + _table(
        ["method", "seed", *percent, "ε (1/255)", *clock],
        [
            [
                run["label"],
                run["seed"],
                *(_single(run["accuracies"].get(column)) for column in columns),
                *_figures(run, spread=True),
            ]
            for run in analysis["trainings"]
        ],
    )


def _accuracy(cell: Mapping[str, Any] | None, trained: int) -> str:
    if cell is None:
        return MISSING
    low, high = cell["interval_95"]
    spread = "" if cell["sd"] is None else f" ± {cell['sd']:.2f}"
    seeds = "" if cell["seeds"] == trained else f", {cell['seeds']} of {trained} seeds"
    return f"{cell['value']:.2f}{spread} ({low:.1f} – {high:.1f}){seeds}"


def _difference(cell: Mapping[str, Any] | None) -> str:
    if cell is None or "difference" not in cell:
        return MISSING
    low, high = cell["difference"]["interval_95"]
    return f"{cell['difference']['value']:+.2f} ({low:+.1f} … {high:+.1f})"


def _single(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _figures(row: Mapping[str, Any], *, spread: bool = False) -> list[str]:
    if row["eps_mean"] is None:
        return [MISSING] * 3
    radius = f"{row['eps_mean']:.2f}" + (f" ± {row['eps_std']:.2f}" if spread else "")
    return [radius, f"{row['seconds_per_epoch']:.1f}", f"{row['seconds']:.0f}"]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown; all columns but the first are numbers."""
    ruler = f"|---|{'---:|' * (len(heads) - 1)}"
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows))
    return [first, ruler, *others]
