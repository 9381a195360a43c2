"""Reads the records of evaluations, of this version and of earlier ones; `record` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from iaat_fast import units
from iaat_fast.evaluate.suites import CLOSING, SINGLE
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import read_json

SCHEMA = 1
"""Version of results.json."""

LABELS = "labels"
"""Name of the samples' classes in verdicts.npz."""

OVERWRITE = "--overwrite starts again"

_SETTINGS: dict[str, tuple[str, ...]] = {
    "pgd": ("eps", "alpha", "steps", "restarts"),
    "transfer": ("eps", "alpha", "steps", "restarts"),
    "autoattack": ("eps",),
}
"""The fields that a row must have, by its kind."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of an evaluation.

    Args:
        key: its name, unique in the record.
        kind: natural, pgd, transfer, corruption, corruptions, autoattack or adversarial.
        part: the part of the suite it belongs to.
        accuracy: in [0, 1]; of the kind corruptions the mean over the types.
        interval: 95 % Wilson interval; None if the accuracy is a mean over types.
        row: the whole row of results.json.
        suite, seed: of the evaluation it comes from.
    """

    key: str
    kind: str
    part: str
    accuracy: float
    interval: tuple[float, float] | None
    row: dict[str, Any]
    suite: str
    seed: int | None = None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What was measured, without the seed: equal for two measurements of the same thing."""
        row = self.row
        # To a billionth, so that rounding makes no difference.
        distances = (round(row.get(name, 0.0), 9) for name in ("eps", "alpha"))
        surrogate = row.get("surrogate") or {}
        rest = (
            "steps",
            "restarts",
            "version",
            "precision",
            "engine",
            "corruption",
            "source",
            "file",
        )
        return (
            *(self.kind, self.part, *distances, targets(row), surrogate.get("run")),
            *(row.get(name) for name in rest),
        )


def targets(row: Mapping[str, Any]) -> str | bool:
    """How a row's attack chose its targets: False, or "random"."""
    found = row.get("targeted", False)
    return False if found in ("no", None) else found


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a run.

    Args:
        path: the file it came from.
        suite: its name; `CLOSING` for the one at the end of a training.
        rule: "last" or "any", which iterates of an attack count.
        complete: whether all measurements are there.
        dataset, split, samples: the images.
        measurements: the rows.
        seed: of the attacks; None: not recorded.
        epoch: of the checkpoint; None: not recorded.
        weights, images: their hashes; None: not recorded.
        environment: what it ran on.
    """

    path: Path
    suite: str
    rule: str
    complete: bool
    split: str
    samples: int
    measurements: tuple[Measurement, ...]
    dataset: str | None = None
    seed: int | None = None
    epoch: int | None = None
    weights: str | None = None
    images: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str, part: str | None = None) -> list[Measurement]:
        """The measurements of a kind, and of a part if one is named."""
        return [m for m in self.measurements if m.kind == kind and part in (None, m.part)]


def evaluations_of(folder: RunFolder) -> list[Evaluation]:
    """All evaluations of a run, first the one at the end of its training.

    Raises:
        ValueError: a file is damaged or of a newer version; the message names it.
    """
    closing = [folder.results_path] if folder.results_path.is_file() else []
    records = sorted(folder.evaluation_dir.glob("*/results.json"))
    earlier = sorted(folder.evaluation_dir.glob("*.json"))
    return [read_evaluation(path) for path in (*closing, *records, *earlier)]


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a results.json, or in a file of an earlier version.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, of a newer version, or holds something else.
    """
    content = read_json(path)
    is_earlier = "schema" not in content
    if not is_earlier:
        check_results(path, content)
    try:
        if is_earlier:
            content = _upgraded(content)
        data, settings = content["data"], content["settings"]
        suite, seed = str(content["suite"]), content.get("seed")
        return Evaluation(
            path=path,
            suite=suite,
            rule=str(content["rule"]),
            complete=bool(content["complete"]),
            dataset=data["name"],
            split=str(data["split"]),
            samples=int(data["samples"]),
            measurements=tuple(
                _measurement(path, row, suite, seed)
                for row in content["measurements"]
                if not _is_empty(row)
            ),
            seed=seed,
            epoch=content.get("epoch"),
            weights=settings.get("weights_sha256"),
            images=settings.get("data_sha256"),
            environment=dict(content.get("environment") or {}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the record of an evaluation ({error!r})") from error


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """As a record: what earlier versions wrote, without a schema, for the end of a training or for single attacks."""
    if "natural_accuracy" in content:
        samples = int(content["samples"])
        counts = [
            share(round(content[f"{name}_accuracy"] * samples), samples)
            for name in ("natural", "robust")
        ]
        attacks = [content["attack"]]
        header = {"suite": CLOSING, "data": {"name": None, "split": "test", "samples": samples}}
    else:
        counts = [content["natural"], *content["robust"]]
        attacks = content["robust"]
        header = {**content, "suite": SINGLE, "seed": attacks[0]["seed"]}
    kinds = ["natural", *["pgd"] * len(attacks)]
    keys = ["natural", *(units.attack_key(a["steps"], a["restarts"], a["eps"]) for a in attacks)]
    rows = [
        {"key": key, "kind": kind, "part": kind, **attack, **count}
        for key, kind, attack, count in zip(keys, kinds, [{}, *attacks], counts, strict=True)
    ]
    return {**header, "rule": "last", "complete": True, "settings": {}, "measurements": rows}


def _is_empty(row: dict[str, Any]) -> bool:
    """Whether a row says only that there was nothing to measure."""
    return row["kind"] == "corruptions" and row["mean_accuracy"] is None


def _measurement(path: Path, row: dict[str, Any], suite: str, seed: int | None) -> Measurement:
    key, kind = str(row["key"]), str(row["kind"])
    value = row["mean_accuracy" if kind == "corruptions" else "accuracy"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{path}: the accuracy of {key} is {value!r}, expected 0 to 1")
    missing = [name for name in _SETTINGS.get(kind, ()) if name not in row]
    if missing:
        raise ValueError(f"{path}: {key} lacks {', '.join(missing)}")
    interval = row.get("interval_95")
    return Measurement(
        key=key,
        kind=kind,
        part=str(row["part"]),
        accuracy=float(value),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        row=row,
        suite=suite,
        seed=seed,
    )


def read_record(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """results.json and verdicts.npz of a folder.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: a file is damaged, of a newer version, or the two do not belong together.
    """
    file = path / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no evaluation there, expected its results.json")
    content = read_json(file)
    check_results(file, content)
    file = path / "verdicts.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            verdicts = {name: arrays[name] for name in arrays.files}
        labels = verdicts[LABELS]
        if any(array.shape[-1:] != labels.shape for array in verdicts.values()):
            raise ValueError("arrays of another length than the labels")
    except FileNotFoundError as error:
        raise ValueError(f"{file}: not there; {results_kept(path)}, {OVERWRITE}") from error
    # Damaged bytes may raise anything in zipfile and numpy.
    except Exception as error:
        raise ValueError(f"{file}: damaged ({error}); {results_kept(path)}, {OVERWRITE}") from error
    for row in content["measurements"]:
        counted = row.get("correct")
        array = verdicts.get(row["key"])
        if counted is not None and array is not None and int(array.sum()) != counted:
            raise ValueError(
                f"{file}: {row['key']} has {int(array.sum())} correct, results.json {counted}; "
                f"{results_kept(path)}, {OVERWRITE}"
            )
    return content, verdicts


def check_results(file: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError if the content of a results.json is of a newer version, or no record."""
    refuse_newer(file, content)
    needed = ("settings", "parts", "measurements", "complete", "data", "suite", "rule")
    missing = [name for name in needed if name not in content]
    if missing:
        raise ValueError(f"{file}: not the record of an evaluation, it lacks {', '.join(missing)}")


def recount(folder: Path | str, subset: ArrayLike) -> dict[str, dict[str, Any]]:
    """The accuracies of an evaluation on some of its samples, computed from its verdicts.

        recount("runs/x/evaluation/cifar-cifar10-10000-seed0", np.arange(1000))["pgd10x5-eps8"]["accuracy"]

    Args:
        folder: of the evaluation.
        subset: sample numbers, int [n], without repetition; or bool [N].

    Returns:
        For each key of a measurement, "accuracy", "correct", "samples" and "interval_95"; for a corruption only
        "accuracy", the mean over its severities.

    Raises:
        FileNotFoundError: the folder has no record.
        ValueError: the record is damaged, or the subset is not as described.
    """
    _, verdicts = read_record(Path(folder))
    labels = verdicts.pop(LABELS)
    chosen = np.asarray(subset)
    if chosen.dtype == bool and chosen.shape == labels.shape:
        chosen = chosen.nonzero()[0]
    whole = chosen.dtype.kind in "iu" and chosen.ndim == 1 and len(chosen) > 0
    if not whole or len(np.unique(chosen)) < len(chosen):
        raise ValueError(
            f"subset: {chosen.dtype} {list(chosen.shape)}, expected at least 1 sample: numbers, none twice, "
            f"or bool [{len(labels)}]"
        )
    if chosen.min() < 0 or chosen.max() >= len(labels):
        raise ValueError(f"subset: expected numbers in 0 ... {len(labels) - 1}")
    return {
        name: share(int(array[chosen].sum()), len(chosen))
        if array.ndim == 1
        else {"accuracy": float(array[..., chosen].mean())}
        for name, array in verdicts.items()
    }


def results_kept(path: Path) -> str:
    return f"{path / 'results.json'} is kept"


def refuse_newer(file: Path, content: Mapping[str, Any]) -> None:
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(
            f"{file}: written by a newer version (schema {schema}, this one reads {SCHEMA})"
        )
    if schema != SCHEMA:
        raise ValueError(f"{file}: schema {schema!r}, expected {SCHEMA}")


def wilson(correct: float, samples: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of the share `correct / samples`.

    Args:
        correct: number of correct samples; may be fractional, as a mean of several counts.
        samples: number of independent samples.

    Source: Wilson 1927. (scipy's binomtest takes integer counts only.)
    """
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    share, whole = correct / samples, 1 + z * z / samples
    middle = share + z * z / (2 * samples)
    spread = z * ((share * (1 - share) + z * z / (4 * samples)) / samples) ** 0.5
    # If all or none are correct, that end is exact, so that rounding cannot push the share out of the interval.
    low = 0.0 if correct == 0 else (middle - spread) / whole
    high = 1.0 if correct == samples else (middle + spread) / whole
    return low, high


def share(correct: int, samples: int) -> dict[str, Any]:
    """An accuracy with its counts and its 95 % interval."""
    return {
        "accuracy": correct / samples,
        "correct": correct,
        "samples": samples,
        "interval_95": list(wilson(correct, samples)),
    }
