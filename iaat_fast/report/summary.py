"""The short tables: of a run that has just ended, and of several runs, as mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iaat_fast import units
from iaat_fast.evaluate.results import Measurement
from iaat_fast.report.groups import CARRIED_OUT
from iaat_fast.report.records import after_training
from iaat_fast.run_folder import RunFolder, flat

if TYPE_CHECKING:
    from rich.table import Table as RichTable

VARIANTS = ("attack.", "epsilon.")
"""Fields whose values make variants of a method, and are named in the row. Runs that differ in other
fields (data, network, optimisation, evaluation) cannot be compared and are refused."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with all that the comparison needs.

    Args:
        name: what to call it in messages.
        config: its configuration, flat: `{"method": ..., "optim.lr": ...}`.
        results: its closing evaluation, as in results.json.
        attacks: later attacks, on the same images.
        left_out: texts that say what of its evaluations is not shown, and why.
    """

    name: str
    config: dict[str, Any]
    results: dict[str, Any]
    attacks: tuple[Measurement, ...] = ()
    left_out: tuple[str, ...] = ()


def read_run(folder: RunFolder) -> Run:
    """The run in a folder, from its config.json, results.json and later evaluations.

    Raises:
        FileNotFoundError: no such folder, or the run has not finished.
        ValueError: a file is damaged.
    """
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path}: no such run folder")
    config = folder.config()
    if not folder.results_path.is_file():
        raise FileNotFoundError(
            f"{folder.path}: this run has no closing evaluation, it did not finish"
        )
    results = folder.results()
    fields = flat(config)
    for where, content, keys in (
        (folder.config_path, fields, ("method", "run.seed")),
        (
            folder.results_path,
            results,
            ("natural_accuracy", "robust_accuracy", "attack", "samples"),
        ),
    ):
        missing = [key for key in keys if key not in content]
        if missing:
            raise ValueError(f"{where}: lacks {', '.join(missing)}")
    attacks, left_out = after_training(folder)
    return Run(
        name=str(folder.path),
        config=fields,
        results=results,
        attacks=tuple(attacks),
        left_out=tuple(left_out),
    )


def summary_table(runs: Sequence[Run]) -> str:
    """A Markdown table with one row per method (and variant of its attack or radii).

    Accuracies are in percent and radii in 1/255, each as mean ± sample standard deviation over the
    seeds; the number of seeds is in the row, and a single one has no deviation.

    Raises:
        ValueError: no runs, runs that differ in more than seed, method and variant, or the same
            seed twice.
    """
    if not runs:
        raise ValueError("runs: none given, expected at least one")
    _refuse_incomparable(runs)
    groups: dict[str, list[Run]] = {}
    for run, label in zip(runs, _labels(runs), strict=True):
        groups.setdefault(label, []).append(run)
    for label, members in groups.items():
        seeds = [run.config["run.seed"] for run in members]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(run.name for run in members)
            raise ValueError(f"{label}: the same seed twice among {names}")
    first = runs[0].results
    further = _further_attacks(runs)
    heads = [
        f"{units.attack_name(first['attack'])} (%)",
        *(f"{name} (%)" for name in further.values()),
    ]
    lines = [
        f"| method | seeds | natural (%) | {' | '.join(heads)} | mean ε (1/255) | spread of ε (1/255) |",
        f"|---|---:|---:|{'---:|' * len(heads)}---:|---:|",
    ]
    for label, members in groups.items():
        cells = [
            label,
            str(len(members)),
            _over_seeds([run.results.get("natural_accuracy") for run in members], 100),
            _over_seeds([run.results.get("robust_accuracy") for run in members], 100),
            *(
                _over_seeds([_accuracy_under(run, setting) for run in members], 100)
                for setting in further
            ),
            _over_seeds([run.results.get("eps_mean") for run in members], 255),
            _over_seeds([run.results.get("eps_std") for run in members], 255),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    step = f"{units.to_text(first['attack']['alpha'])}/255"
    lines += [
        "",
        f"{first['samples']} test images, attack step {step}. Mean ± sample standard deviation over "
        "the seeds; spread of ε is its standard deviation over the training samples.",
    ]
    return "\n".join(lines)


def _refuse_incomparable(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        changed = [
            f"{name} ({first.config.get(name)!r}, {run.config.get(name)!r})"
            for name in _differing([first, run])
            if name != "method" and not name.startswith(VARIANTS)
        ]
        for name in ("attack", "samples"):
            if first.results[name] != run.results[name]:
                changed.append(f"{name} ({first.results[name]!r}, {run.results[name]!r})")
        if changed:
            raise ValueError(f"{first.name} and {run.name} differ in {', '.join(changed)}")


def _differing(runs: Sequence[Run]) -> list[str]:
    """The fields, except `CARRIED_OUT`, in which configurations differ."""
    names = sorted({name for run in runs for name in run.config})
    return [
        name
        for name in names
        if not name.startswith(CARRIED_OUT)
        and any(run.config.get(name) != runs[0].config.get(name) for run in runs)
    ]


def _labels(runs: Sequence[Run]) -> list[str]:
    """The method of each run, with the fields in which runs of that method differ."""
    labels = []
    for run in runs:
        method = run.config["method"]
        fields = _differing([other for other in runs if other.config["method"] == method])
        variant = ", ".join(f"{name}={run.config.get(name)!r}" for name in fields)
        labels.append(f"{method} ({variant})" if variant else str(method))
    return labels


def _further_attacks(runs: Sequence[Run]) -> dict[tuple[Any, ...], str]:
    """The names of the attacks on the runs after their trainings, by `Measurement.setting`."""
    step = runs[0].results["attack"]["alpha"]
    names = {}
    for attack in (attack for run in runs for attack in run.attacks):
        row, name = attack.row, units.attack_name(attack.row)
        if round(255 * (row["alpha"] - step), 6):
            name += f", step {units.to_text(row['alpha'])}/255"
        names[attack.setting] = name
    return names


def _accuracy_under(run: Run, setting: tuple[Any, ...]) -> float | None:
    return next((attack.accuracy for attack in run.attacks if attack.setting == setting), None)


def _over_seeds(values: Sequence[float | None], scale: float) -> str:
    numbers = [value * scale for value in values if value is not None]
    if len(numbers) < len(values):
        return "–"
    mean = f"{statistics.fmean(numbers):.2f}"
    return f"{mean} ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else mean


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The result of a finished run.

    Args:
        natural: natural test accuracy, in [0, 1].
        robust: test accuracy under `attack`, in [0, 1].
        attack: "eps" and "alpha" on the [0, 1] scale, "steps", "restarts" and "targeted" of the PGD attack.
        eps_mean, eps_std, eps_min, eps_max: of the radii of all training samples, [0, 1] scale;
            None for a method whose samples have no radii of their own.
        fast: what `run.fast` has chosen, in words; None if it was off.
    """

    natural: float
    robust: float
    attack: dict[str, Any]
    eps_mean: float | None = None
    eps_std: float | None = None
    eps_min: float | None = None
    eps_max: float | None = None
    fast: str | None = None


def closing_table(summary: RunSummary, *, title: str | None = None) -> RichTable:
    """The summary for a terminal; accuracies in percent, radii in units of 1/255."""
    from rich.table import Table

    caption = None if summary.fast is None else f"fast: {summary.fast}"
    table = Table(title=title, caption=caption, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("natural accuracy", f"{summary.natural:.2%}")
    table.add_row(units.attack_name(summary.attack), f"{summary.robust:.2%}")
    if summary.eps_mean is None:
        return table
    mean, std, low, high = (
        (value or 0.0) * 255
        for value in (summary.eps_mean, summary.eps_std, summary.eps_min, summary.eps_max)
    )
    table.add_row("ε memory, mean ± spread (1/255)", f"{mean:.2f} ± {std:.2f}")
    table.add_row("ε memory, smallest – largest (1/255)", f"{low:.2f} – {high:.2f}")
    return table
