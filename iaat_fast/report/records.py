"""Runs and their evaluations read from run folders, checked as far as tables and figures rely on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iaat_fast.files import read_json
from iaat_fast.report.comparison import flat
from iaat_fast.run_folder import RunFolder

SCHEMA = 1
CLOSING = "closing"
"""The suite of a record made from the evaluation that closes a training."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of an evaluation.

    Args:
        key: its name, unique in the record.
        kind: natural, pgd, transfer, corruption, corruptions, autoattack or adversarial.
        part: the part of the suite it belongs to.
        accuracy: in [0, 1]; of the kind corruptions the mean over the types.
        interval: 95 % Wilson interval; None where the figure is a mean over types.
        row: everything the record says of it.
    """

    key: str
    kind: str
    part: str
    accuracy: float
    interval: tuple[float, float] | None
    row: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a run.

    Args:
        path: the file it came from.
        suite: its name; `CLOSING` for the one that closes a training.
        rule: whether the last iterate or any iterate counts.
        complete: whether all measurements are in.
        split, samples: the images.
        measurements: the rows.
    """

    path: Path
    suite: str
    rule: str
    complete: bool
    split: str
    samples: int
    measurements: tuple[Measurement, ...]
    environment: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str, part: str | None = None) -> list[Measurement]:
        """The measurements of a kind, and of a part if one is named."""
        return [m for m in self.measurements if m.kind == kind and part in (None, m.part)]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as the report needs it.

    Args:
        folder: where it lies.
        config: its configuration, flat: `{"method": ..., "optim.lr": ...}`.
        env: what it ran on, {} if that was not kept.
        metrics: one row per epoch.
        snapshots: the files of the radii by epoch; {} for methods without radii of their own.
        evaluation: the record that is reported; None for a run that was never evaluated.
    """

    folder: RunFolder
    config: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]
    snapshots: dict[int, Path]
    evaluation: Evaluation | None

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(self.folder.path)

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.config["run.seed"])

    @property
    def epochs_done(self) -> int:
        """Epochs finished."""
        return int(self.metrics[-1]["epoch"]) if self.metrics else 0


NEEDED = ("method", "run.seed", "data.name", "model.name", "optim.epochs")


def read_record(folder: RunFolder, *, evaluation: str | None = None) -> RunRecord:
    """The run in a folder.

    Args:
        folder: a run folder.
        evaluation: name of the folder below `evaluation/` to report; None: of those of the run's own data set the
            complete one with the most samples, an incomplete one where none is complete, the evaluation that closed
            the training where there is no other.

    Raises:
        FileNotFoundError: no such folder, no run in it, or no evaluation of that name.
        ValueError: a file is damaged; it is named.
    """
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path}: no such run folder")
    config = flat(folder.config())
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise ValueError(f"{folder.config_path}: lacks {', '.join(missing)}")
    metrics = folder.metrics()
    for number, row in enumerate(metrics, start=1):
        if not isinstance(row, dict) or "epoch" not in row:
            raise ValueError(f"{folder.metrics_path}: line {number} is no row of an epoch")
    return RunRecord(
        folder=folder,
        config=config,
        env=folder.env() if folder.env_path.is_file() else {},
        metrics=metrics,
        snapshots=folder.epsilon_snapshots(),
        evaluation=_choose(folder, config["data.name"], evaluation),
    )


def _choose(folder: RunFolder, dataset: str, wanted: str | None) -> Evaluation | None:
    if wanted is not None:
        path = folder.evaluation_dir / wanted / "results.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: this run has no evaluation of that name")
        return _read(path)[1]
    found = [_read(path) for path in sorted(folder.evaluation_dir.glob("*/results.json"))]
    own = [evaluation for name, evaluation in found if name == dataset and evaluation.measurements]
    if own:
        return max(
            own, key=lambda e: (e.complete, e.samples, e.rule == "last", len(e.measurements))
        )
    return _closing(folder) if folder.results_path.is_file() else None


def _read(path: Path) -> tuple[str, Evaluation]:
    """The data set and the evaluation in a file."""
    content = read_json(path)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema is {content.get('schema')!r}, expected {SCHEMA}")
    try:
        data, rows = content["data"], content["measurements"]
        evaluation = Evaluation(
            path=path,
            suite=str(content["suite"]),
            rule=str(content["rule"]),
            complete=bool(content["complete"]),
            split=str(data["split"]),
            samples=int(data["samples"]),
            measurements=tuple(_measurement(path, row) for row in rows if not _is_empty(row)),
            environment=dict(content.get("environment") or {}),
        )
        return str(data["name"]), evaluation
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the record of an evaluation ({error!r})") from error


def _is_empty(row: dict[str, Any]) -> bool:
    """Whether a row says only that nothing was there to measure."""
    return row["kind"] == "corruptions" and row["mean_accuracy"] is None


def _measurement(path: Path, row: dict[str, Any]) -> Measurement:
    key = str(row["key"])
    value = row["mean_accuracy" if row["kind"] == "corruptions" else "accuracy"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{path}: the accuracy of {key} is {value!r}, expected 0 to 1")
    needed = {"pgd": SETTINGS, "transfer": SETTINGS, "autoattack": ("eps",)}.get(row["kind"], ())
    missing = [name for name in needed if name not in row]
    if missing:
        raise ValueError(f"{path}: {key} lacks {', '.join(missing)}")
    interval = row.get("interval_95")
    return Measurement(
        key=key,
        kind=str(row["kind"]),
        part=str(row["part"]),
        accuracy=float(value),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        row=row,
    )


SETTINGS = ("eps", "alpha", "steps", "restarts")


def _closing(folder: RunFolder) -> Evaluation:
    """The evaluation that closed the training, as a record."""
    results, path = folder.results(), folder.results_path
    try:
        samples = int(results["samples"])
        rows = [
            {"key": "natural", "kind": "natural", "accuracy": results["natural_accuracy"]},
            {
                "key": "pgd",
                "kind": "pgd",
                "accuracy": results["robust_accuracy"],
                **{name: results["attack"][name] for name in SETTINGS},
            },
        ]
        for row in rows:
            row["part"] = row["kind"]
            row["interval_95"] = wilson(round(row["accuracy"] * samples), samples)
        measurements = tuple(_measurement(path, row) for row in rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the closing evaluation of a run ({error!r})") from error
    return Evaluation(
        path=path,
        suite=CLOSING,
        rule="last",
        complete=True,
        split="test",
        samples=samples,
        measurements=measurements,
    )


def wilson(correct: int, samples: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def read_records(folders: Sequence[RunFolder], *, evaluation: str | None = None) -> list[RunRecord]:
    """The runs in some folders; see `read_record`.

    Raises:
        ValueError: no folders, or one given twice.
    """
    if not folders:
        raise ValueError("runs: none given, expected at least one")
    paths = [folder.path.resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise ValueError(f"{folder.path}: given twice")
    return [read_record(folder, evaluation=evaluation) for folder in folders]
