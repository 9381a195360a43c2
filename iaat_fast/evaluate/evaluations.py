"""Evaluations read back from the folder of a run, whatever version wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iaat_fast.evaluate.record import check_results
from iaat_fast.evaluate.rows import share
from iaat_fast.evaluate.suites import CLOSING, SINGLE
from iaat_fast.files import read_json
from iaat_fast.run_folder import RunFolder

_SETTINGS: dict[str, tuple[str, ...]] = {
    "pgd": ("eps", "alpha", "steps", "restarts"),
    "transfer": ("eps", "alpha", "steps", "restarts"),
    "autoattack": ("eps",),
}
"""What a row must say, by its kind."""


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
        """What was measured, the seed left aside: two measurements of one model that agree in it are of the same."""
        row = self.row
        # An attack with an unknown step size is not taken for another's: distances to a billionth.
        distances = (round(row.get(name, 0.0), 9) for name in ("eps", "alpha"))
        surrogate = row.get("surrogate") or {}
        rest = ("steps", "restarts", "version", "corruption", "source", "file")
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
        suite: its name; `CLOSING` for the one that closes a training.
        rule: whether the last iterate or any iterate counts.
        complete: whether all measurements are in.
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
    """All evaluations of a run, the one that closed its training first.

    Raises:
        ValueError: a file is damaged or of a newer version; it is named.
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
    """What earlier versions wrote without a schema, a training's end or single attacks, as a record."""
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
    keys = ["natural", *(f"pgd{a['steps']}x{a['restarts']}-eps{a['eps'] * 255:g}" for a in attacks)]
    rows = [
        {"key": key, "kind": kind, "part": kind, **attack, **count}
        for key, kind, attack, count in zip(keys, kinds, [{}, *attacks], counts, strict=True)
    ]
    return {**header, "rule": "last", "complete": True, "settings": {}, "measurements": rows}


def _is_empty(row: dict[str, Any]) -> bool:
    """Whether a row says only that nothing was there to measure."""
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
