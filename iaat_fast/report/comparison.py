"""Several runs side by side: mean and standard deviation over seeds, as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iaat_fast.report.closing import attack_name
from iaat_fast.run_folder import RunFolder

NOT_COMPARED = ("run.", "data.path", "data.workers", "optim.graph")
"""Where, how and with which seed a run was carried out, and where its images lay."""

VARIANTS = ("attack.", "epsilon.")
"""Fields that make a variant of a method, named in its row. Runs that differ in any other field
(data, network, optimisation, evaluation) are not comparable and refused."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as the comparison needs it.

    Args:
        name: what to call it in messages.
        config: its configuration, flat: `{"method": ..., "optim.lr": ...}`.
        results: its closing evaluation, as in results.json.
    """

    name: str
    config: dict[str, Any]
    results: dict[str, Any]


def read_run(folder: RunFolder) -> Run:
    """The run in a folder, from its config.json and results.json.

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
    return Run(name=str(folder.path), config=fields, results=results)


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
    lines = [
        f"| method | seeds | natural (%) | {attack_name(first['attack'])} (%) "
        "| mean ε (1/255) | spread of ε (1/255) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, members in groups.items():
        cells = [
            label,
            str(len(members)),
            _over_seeds(members, "natural_accuracy", 100),
            _over_seeds(members, "robust_accuracy", 100),
            _over_seeds(members, "eps_mean", 255),
            _over_seeds(members, "eps_std", 255),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    step = f"{first['attack']['alpha'] * 255:g}/255"
    lines += [
        "",
        f"{first['samples']} test images, attack step {step}. Mean ± sample standard deviation over "
        "the seeds; spread of ε is its standard deviation over the training samples.",
    ]
    return "\n".join(lines)


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration nested by part with one name per field: `{"optim.lr": 0.1}`."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            fields.update({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            fields[name] = value
    return fields


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
    """The fields in which configurations differ, of those that are compared."""
    names = sorted({name for run in runs for name in run.config})
    return [
        name
        for name in names
        if not name.startswith(NOT_COMPARED)
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


def _over_seeds(runs: Sequence[Run], key: str, scale: float) -> str:
    values = [run.results.get(key) for run in runs]
    numbers = [value * scale for value in values if value is not None]
    if len(numbers) < len(values):
        return "–"
    mean = f"{statistics.fmean(numbers):.2f}"
    return f"{mean} ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else mean
