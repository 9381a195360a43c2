"""Reads runs from their folders, each with its evaluations joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iaat_fast import methods
from iaat_fast.evaluate.results import (
    Evaluation,
    Measurement,
    evaluations_of,
    read_evaluation,
)
from iaat_fast.evaluate.suites import CLOSING, SINGLE
from iaat_fast.run_folder import RunFolder, flat


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run with all that the report needs.

    Args:
        folder: of the run.
        config: its configuration, flat: `{"method": ..., "optim.lr": ...}`.
        env: what it ran on, {} if that was not recorded.
        metrics: one row per epoch.
        snapshots: the files of the radii by epoch; {} for methods without radii of their own.
        evaluation: the evaluation to report; None for a run that was never evaluated.
        left_out: texts that say what of its evaluations is not reported, and why.
    """

    folder: RunFolder
    config: dict[str, Any]
    env: dict[str, Any]
    metrics: list[dict[str, Any]]
    snapshots: dict[int, Path]
    evaluation: Evaluation | None
    left_out: tuple[str, ...] = ()

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
        evaluation: name of the evaluation below `evaluation/` to report; None: all on the run's own data set that
            agree in weights, images and rule, including the one at the end of the training.

    Raises:
        FileNotFoundError: no such folder, no run in it, or no evaluation of that name.
        ValueError: a file is damaged; the message names it.
    """
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path}: no such run folder")
    config = flat(folder.config())
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise ValueError(f"{folder.config_path}: lacks {', '.join(missing)}")
    config = {**methods.NOT_RECORDED, **config}
    metrics = folder.metrics()
    for number, row in enumerate(metrics, start=1):
        if not isinstance(row, dict) or "epoch" not in row:
            raise ValueError(f"{folder.metrics_path}: line {number} is no row of an epoch")
    chosen, left_out = (
        (_named(folder, evaluation), []) if evaluation is not None else _choose(folder)
    )
    return RunRecord(
        folder=folder,
        config=config,
        env=folder.env() if folder.env_path.is_file() else {},
        metrics=metrics,
        snapshots=folder.epsilon_snapshots(),
        evaluation=chosen,
        left_out=tuple(left_out),
    )


def _named(folder: RunFolder, name: str) -> Evaluation:
    for path in (
        folder.evaluation_dir / name / "results.json",
        folder.evaluation_dir / f"{name}.json",
    ):
        if path.is_file():
            return read_evaluation(path)
    raise FileNotFoundError(
        f"{folder.evaluation_dir / name}: this run has no evaluation of that name"
    )


def _choose(folder: RunFolder) -> tuple[Evaluation | None, list[str]]:
    """A run's evaluations on its own data set, joined into one; and texts that say what is left out, and why.

    If they do not agree in weights, images and rule, those are joined that agree with the best one: by the latest
    weights, then a suite, a complete one, the most samples, the rule of the last iterate.
    """
    found = [e for e in _evaluations(folder) if e.measurements]
    if not found:
        return None, []

    def rank(e: Evaluation) -> tuple[Any, ...]:
        named = e.suite not in (SINGLE, CLOSING)
        last = e.rule == "last"
        return (e.epoch or 0, named, e.complete, e.samples, last, e.suite != CLOSING)

    first = max(found, key=lambda e: (*rank(e), len(e.measurements)))
    # By falling rank, the closing evaluation last: of two measurements of the same thing, the first is shown.
    others = sorted((e for e in found if e is not first), key=rank, reverse=True)
    return _joined(folder, first, others)


def _evaluations(folder: RunFolder) -> list[Evaluation]:
    """A run's evaluations on its own data set, first the one at the end of its training."""
    config, metrics = folder.config(), folder.metrics()
    return [
        # Earlier versions did not record that it is of the last epoch and has the run's own seed.
        replace(e, epoch=metrics[-1]["epoch"] if metrics else None, seed=config["run"]["seed"])
        if e.suite == CLOSING and e.epoch is None
        else e
        for e in evaluations_of(folder)
        if e.dataset in (None, config["data"]["name"])
    ]


def after_training(folder: RunFolder) -> tuple[list[Measurement], list[str]]:
    """The PGD attacks measured after a training, on the weights and images of its closing evaluation.

    Second, texts that say which other measurements are left out, and why.
    """
    closing, *others = _evaluations(folder)
    joined, left_out = _joined(folder, closing, others)
    attacks = [m for m in joined.of("pgd", "pgd") if m not in closing.measurements]
    return attacks, left_out


def _joined(
    folder: RunFolder, first: Evaluation, others: Sequence[Evaluation]
) -> tuple[Evaluation, list[str]]:
    """`first` plus the measurements of the others with the same weights, images and rule; and what is left out."""
    measurements, complete, said = list(first.measurements), first.complete, []
    for other in others:
        if unlike := _unlike(first, other):
            said.append(f"{_name(folder, other)}: left out, its {unlike}")
            continue
        complete = complete and other.complete
        # The closing evaluation has the run's own seed: another accuracy in a suite with another seed is expected.
        closes = CLOSING in (first.suite, other.suite)
        known = {m.setting: m for m in reversed(measurements)}
        # A curve is drawn from one record: points of two may differ in the step size.
        curves = {part for part in CURVES if any(m.part == part for m in measurements)}
        for m in other.measurements:
            shown = known.get(m.setting)
            if m.part in curves and shown is None:
                said.append(f"{_name(folder, other)}: {m.key} left out, another {m.part} is shown")
            elif shown is None:
                measurements.append(m)
            elif shown.accuracy != m.accuracy and not (closes and other.seed != first.seed):
                said.append(
                    f"{_name(folder, other)}: {m.key} is {m.accuracy:.2%} with seed {other.seed}; shown is the "
                    f"{shown.accuracy:.2%} of seed {shown.seed}"
                )
    return replace(first, measurements=tuple(measurements), complete=complete), said


CURVES = ("eps-sweep", "steps-sweep")
"""Parts that are drawn as curves."""


def _unlike(first: Evaluation, other: Evaluation) -> str | None:
    """Why two evaluations of a run cannot be joined; None if they can."""
    for what in ("epoch", "samples", "split", "rule", "weights", "images"):
        one, two = getattr(first, what), getattr(other, what)
        # Earlier versions did not record all of these.
        if None not in (one, two) and one != two:
            hashed = what in ("weights", "images")
            return f"{what} differ" if hashed else f"{what} is {two}, shown is {one}"
    return None


def _name(folder: RunFolder, evaluation: Evaluation) -> str:
    return f"{folder.path}, {evaluation.path.relative_to(folder.path)}"


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
