"""The record of an evaluation in its folder: results, verdicts per sample, and the state to resume from.

    results.json     settings and one row per finished measurement, see `Record.add`
    verdicts.npz     "labels" int64 [N]; under the key of each measurement bool [N], True is robust; for a corruption
                     bool [5, N], by severity
    progress.pt      the state of the measurement in progress; absent once all are finished
    adversarial/     adversarial examples, if they were asked for

Files are replaced atomically. A record with `path` None is kept in memory only.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iaat_fast.attacks import AttackStats
from iaat_fast.evaluate.results import (
    LABELS,
    OVERWRITE,
    SCHEMA,
    read_record,
    refuse_newer,
    results_kept,
    share,
)
from iaat_fast.evaluate.suites import PGDMeasurement
from iaat_fast.storage import is_temporary, load_tensors, replace, write_json


class Record:
    """Rows, verdicts and progress of one evaluation; made by `open_record`.

    Attributes:
        path: its folder, or None.
        content: what results.json holds.
        verdicts: arrays by name, of every finished measurement, and "labels".
    """

    def __init__(
        self, path: Path | None, content: dict[str, Any], verdicts: dict[str, np.ndarray]
    ) -> None:
        self.path, self.content, self.verdicts = path, content, verdicts
        self._progress: dict[str, Any] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished measurements, in the order in which they finished."""
        rows: list[dict[str, Any]] = self.content["measurements"]
        return rows

    def has(self, key: str) -> bool:
        """Whether the measurement of this key is finished."""
        return any(row["key"] == key for row in self.rows)

    def add(self, row: Mapping[str, Any], verdicts: Mapping[str, np.ndarray]) -> None:
        """Add a finished measurement and write it to disk.

        Args:
            row: plain values, including "key" (unique), "kind" and "part".
            verdicts: bool arrays to keep, by name. From one of shape [N] under the row's own key, "accuracy",
                "correct", "samples" and "interval_95" are added to the row.
        """
        key = row["key"]
        if self.has(key):
            raise ValueError(f"key: {key!r} is in the record already")
        whole = dict(row)
        if key in verdicts and verdicts[key].ndim == 1:
            counted = share(int(verdicts[key].sum()), len(verdicts[key]))
            lead = {name: whole.pop(name) for name in ("key", "kind", "part")}
            whole = {**lead, **counted, **whole}
        self.verdicts.update(verdicts)
        self.rows.append(whole)
        self.save()

    def ask(self, parts: tuple[str, ...]) -> None:
        """Note that these parts are asked for; the record is complete once all parts ever asked for are finished."""
        for part in parts:
            self.content["parts"].setdefault(part, False)
        self._conclude()

    def finish(self, part: str) -> None:
        """Note that a part is finished; with the last part, the record is complete."""
        self.content["parts"][part] = True
        self._conclude()
        self.save()

    def is_finished(self, part: str) -> bool:
        return bool(self.content["parts"].get(part, False))

    def save(self) -> None:
        """Replace results.json and verdicts.npz."""
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **self.verdicts)
        # The verdicts first, so that no row lacks its verdicts.
        replace(self.path / "verdicts.npz", buffer.getbuffer())
        write_json(self.path / "results.json", self.content)

    @property
    def has_progress(self) -> bool:
        """Whether a measurement was started and is not finished."""
        return bool(self._progress)

    def progress(self, name: str) -> Any:
        """The state last saved under this name; None if there is none."""
        return self._progress.get(name)

    def save_progress(self, name: str, state: Any) -> None:
        """Save a state, of tensors and plain values, from which a killed evaluation continues; None removes it."""
        if state is not None:
            self._progress[name] = state
        elif self._progress.pop(name, None) is None:
            return
        if self.path is None:
            return
        file = self.path / "progress.pt"
        if not self._progress:
            file.unlink(missing_ok=True)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, "states": self._progress}, buffer)
        replace(file, buffer.getbuffer())

    def load_progress(self) -> None:
        """Read progress.pt, where there is one.

        Raises:
            ValueError: it is damaged, or of a newer version.
        """
        if self.path is None or not (self.path / "progress.pt").exists():
            return
        file = self.path / "progress.pt"
        try:
            content = load_tensors(file)
        except ValueError as error:
            raise ValueError(
                f"{error}; {results_kept(self.path)}, delete {file.name} to continue without it"
            ) from error
        if not isinstance(content, dict) or "states" not in content:
            raise ValueError(f"{file}: not the progress of an evaluation")
        refuse_newer(file, content)
        self._progress = content["states"]

    def _conclude(self) -> None:
        self.content["complete"] = all(self.content["parts"].values())


def open_record(
    path: Path | None,
    header: Mapping[str, Any],
    labels: np.ndarray,
    *,
    overwrite: bool = False,
) -> Record:
    """The record in a folder, to be continued, or a new one if there is none.

    Args:
        path: its folder; None: in memory.
        header: content of results.json except for the rows; "settings" holds what must not change.
        labels: int64 [N], the samples' classes.
        overwrite: start again, whatever the folder holds.

    Raises:
        ValueError: the record there is damaged, of a newer version, or of other settings (each that differs is named).
    """
    fresh = {
        "schema": SCHEMA,
        "complete": False,
        **header,
        "parts": {},
        "measurements": [],
    }
    if path is not None and overwrite:
        for name in ("progress.pt", "results.json", "verdicts.npz"):
            (path / name).unlink(missing_ok=True)
        shutil.rmtree(path / "adversarial", ignore_errors=True)
    if path is None or not (path / "results.json").exists():
        if path is not None and (path / "progress.pt").exists():
            # Without results.json its settings are unknown.
            (path / "progress.pt").unlink()
        return Record(path, fresh, {LABELS: labels})
    content, verdicts = read_record(path)
    for entry in path.iterdir():
        if is_temporary(entry):
            entry.unlink()
    _refuse_other_settings(path, content, fresh)
    if not np.array_equal(verdicts[LABELS], labels):
        raise ValueError(f"{path}: labels: not those of these samples; {OVERWRITE}")
    content["settings"] = {**content["settings"], **fresh["settings"]}
    content["batch_size"] = fresh["batch_size"]
    record = Record(path, content, verdicts)
    record.load_progress()
    return record


def _refuse_other_settings(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    before, now = (
        {**c["settings"], **{name: c[name] for name in ("rule", "suite", "seed") if name in c}}
        for c in (old, new)
    )
    changed = [
        f"{name} (was {_short(before[name])}, now {_short(now[name])})"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if changed:
        raise ValueError(f"{path}: made with another {', '.join(changed)}; {OVERWRITE}")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def rounded(seconds: float) -> float:
    """Seconds to a millisecond, or below 1 s to three significant digits, so that a short time is not recorded as 0."""
    return round(seconds, 3) if seconds >= 1 else float(f"{seconds:.3g}")


def natural_row(seconds: float) -> dict[str, Any]:
    """The row of the natural accuracy; `Record.add` fills in its counts."""
    return {"key": "natural", "kind": "natural", "part": "natural", "seconds": rounded(seconds)}


def pgd_row(one: PGDMeasurement, gradients: AttackStats, seconds: float) -> dict[str, Any]:
    """The row of a PGD attack, with its gradients and its time; `Record.add` fills in its counts."""
    return {
        "key": one.key,
        "kind": "transfer" if one.part == "transfer" else "pgd",
        "part": one.part,
        "eps": one.eps,
        "alpha": one.alpha,
        "steps": one.steps,
        "restarts": one.restarts,
        "targeted": one.targeted,
        "gradients": gradients.gradients,
        "gradients_planned": gradients.planned,
        "zero_gradient_entries": gradients.zero,
        "nan_gradient_entries": gradients.nan,
        "gradient_entries": gradients.total,
        "seconds": rounded(seconds),
    }
