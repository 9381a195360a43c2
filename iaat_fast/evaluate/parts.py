"""The parts of an evaluation: natural accuracy, PGD on shared trajectories, transfer, corruptions, saved examples.

A part is a function of an `Evaluation` in the table `PARTS`. It adds a row to `evaluation.record` for each
measurement that the record does not have yet, may keep its state by `evaluation.save`, and tells how far it is
by `evaluation.tell`, where that is given. It may be stopped at any moment by an exception, and is then called again,
with the record as it was left.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from iaat_fast.evaluate.accuracies import natural_verdicts
from iaat_fast.evaluate.adversarial import AdversarialFiles, score
from iaat_fast.evaluate.autoattack_part import measure_autoattack
from iaat_fast.evaluate.corruptions import CorruptedImages
from iaat_fast.evaluate.corruptions.part import record_corruptions
from iaat_fast.evaluate.outlook import Rates
from iaat_fast.evaluate.record import Record
from iaat_fast.evaluate.subject import Subject
from iaat_fast.evaluate.suites import PGDMeasurement, Suite
from iaat_fast.evaluate.trajectories import Mark, Trajectories
from iaat_fast.evaluate.transfer import Surrogate

WHITE_BOX = ("pgd", "eps-sweep", "steps-sweep")
"""Parts that attack the subject itself by PGD: one run of trajectories serves them all."""

Tell = Callable[[str, float, float], None]


@dataclass(kw_only=True)
class Evaluation:
    """What a part works with.

    Args:
        subject: model and samples.
        suite: what is measured.
        parts: the parts that were asked for.
        record: where rows go.
        eps, alpha: radii and step size, on the [0, 1] scale.
        seed: of all randomness.
        batch_size: samples at once.
        any_iterate: the rule by which samples fall, see `Trajectories`.
        surrogate: the model that transferred attacks are crafted on.
        corrupted: the images of the part "corruptions".
        adversarial: files of saved examples to score.
        save_adversarial: whether to keep the examples.
        save_every: seconds between two saves of the progress.
        tell: called as tell(name, done, remaining), in units of the part's own choice: gradient
            passes of an attack, images of corruptions.
    """

    subject: Subject
    suite: Suite
    parts: tuple[str, ...]
    record: Record
    eps: tuple[float, ...]
    alpha: float
    seed: int = 0
    batch_size: int = 256
    any_iterate: bool = False
    surrogate: Surrogate | None = None
    corrupted: CorruptedImages | None = None
    adversarial: tuple[Path, ...] = ()
    save_adversarial: bool = False
    save_every: float = 30.0
    tell: Tell | None = None
    _saved: float = field(default_factory=time.monotonic)

    @property
    def save_is_due(self) -> bool:
        """Whether the last save is `save_every` seconds ago."""
        return time.monotonic() - self._saved >= self.save_every

    def save(self, name: str, state: Any) -> None:
        """Keep a part's state for resuming."""
        self.record.save_progress(name, state)
        self._saved = time.monotonic()


def natural(evaluation: Evaluation) -> None:
    """Accuracy on the images as they are."""
    if evaluation.record.has("natural"):
        return
    started = time.perf_counter()
    subject = evaluation.subject
    verdicts = natural_verdicts(subject.model, subject.split, batch_size=evaluation.batch_size)
    seconds = round(time.perf_counter() - started, 3)
    row = {"key": "natural", "kind": "natural", "part": "natural", "seconds": seconds}
    evaluation.record.add(row, {"natural": verdicts.numpy()})


def white_box(evaluation: Evaluation) -> None:
    """PGD on the subject's own gradients: the parts of `WHITE_BOX` that were asked for."""
    measurements = [
        measurement
        for part in WHITE_BOX
        if part in evaluation.parts
        for measurement in evaluation.suite.attacks_of(
            part, eps=evaluation.eps, alpha=evaluation.alpha
        )
    ]
    _pgd(evaluation, "white-box", measurements, evaluation.subject.model)


def transfer(evaluation: Evaluation) -> None:
    """PGD crafted on the surrogate and scored on the subject, by the last iterates."""
    assert evaluation.surrogate is not None
    measurements = evaluation.suite.attacks_of(
        "transfer", eps=evaluation.eps, alpha=evaluation.alpha
    )
    _pgd(evaluation, "transfer", measurements, evaluation.surrogate.model)


def corruptions(evaluation: Evaluation) -> None:
    """Accuracy under each corruption, and their summary."""
    assert evaluation.corrupted is not None
    record_corruptions(
        evaluation.subject,
        evaluation.corrupted,
        evaluation.record,
        batch_size=evaluation.batch_size,
        tell=evaluation.tell,
    )


def adversarial(evaluation: Evaluation) -> None:
    """Saved examples, made on whatever model, scored on this one."""
    for file in evaluation.adversarial:
        key = f"adversarial-{file.stem}"
        if evaluation.record.has(key):
            continue
        started = time.perf_counter()
        verdicts, about = score(evaluation.subject, file, batch_size=evaluation.batch_size)
        row = {
            "key": key,
            "kind": "adversarial",
            "part": "adversarial",
            "file": str(file),
            "crafted_on": about,
            "seconds": round(time.perf_counter() - started, 3),
        }
        evaluation.record.add(row, {key: verdicts.numpy()})


PARTS: dict[str, Callable[[Evaluation], None]] = {
    "natural": natural,
    **dict.fromkeys(WHITE_BOX, white_box),
    "transfer": transfer,
    "autoattack": measure_autoattack,
    "corruptions": corruptions,
    "adversarial": adversarial,
}
"""What measures a part. Parts with the same function are measured by one call of it."""


@dataclass
class _Group:
    """Measurements that one run of trajectories serves: of one radius, step size and rule of targets."""

    measurements: list[PGDMeasurement]

    @property
    def marks(self) -> list[Mark]:
        return [Mark(name=m.key, steps=m.steps, restarts=m.restarts) for m in self.measurements]

    def depths(self) -> list[int]:
        """Steps of each restart."""
        most = max(m.restarts for m in self.measurements)
        return [
            max(m.steps for m in self.measurements if m.restarts > restart)
            for restart in range(most)
        ]


def _pgd(
    evaluation: Evaluation,
    name: str,
    measurements: Sequence[PGDMeasurement],
    attacked: nn.Module,
) -> None:
    record, samples = evaluation.record, len(evaluation.subject.split)
    rates, done = Rates(), 0.0
    begun = record.progress(name)
    if begun is not None:
        # What was begun is finished first, with the measurements that it was begun with.
        group = _Group([PGDMeasurement(**plain) for plain in begun["measurements"]])
        done += _run(evaluation, name, group, attacked, begun["run"], done, rates, [])
    groups: dict[tuple[Any, ...], _Group] = {}
    for one in measurements:
        if not record.has(one.key):
            groups.setdefault((one.eps, one.alpha, one.targeted), _Group([])).measurements.append(
                one
            )
    upcoming = [[samples * depth for depth in group.depths()] for group in groups.values()]
    for group in groups.values():
        upcoming.pop(0)
        done += _run(evaluation, name, group, attacked, None, done, rates, upcoming)


def _run(
    evaluation: Evaluation,
    name: str,
    group: _Group,
    attacked: nn.Module,
    state: Any,
    done: float,
    rates: Rates,
    upcoming: list[list[int]],
) -> float:
    """Run a group to its end, adding rows as they come; returns the gradient passes it took."""
    record, subject = evaluation.record, evaluation.subject
    first = group.measurements[0]
    own = attacked is subject.model
    files = None
    if evaluation.save_adversarial and record.path is not None:
        keys = [one.key for one in group.measurements]
        files = AdversarialFiles(record.path / "adversarial", keys, subject, anew=state is None)
    run = Trajectories(
        attacked,
        subject.split,
        group.marks,
        eps=first.eps,
        alpha=first.alpha,
        targeted=first.targeted,
        batch_size=evaluation.batch_size,
        seed=evaluation.seed,
        any_iterate=evaluation.any_iterate and own,
        judge=None if own else subject.model,
        keep=None if files is None else files.keep,
    )
    if state is not None:
        try:
            run.load(state)
        except ValueError as error:
            raise ValueError(
                f"{record.path}/progress.pt: {error}; delete it to do without"
            ) from error
    plain = [dataclasses.asdict(one) for one in group.measurements]
    snapshot = None if state is None else {"measurements": plain, "run": state}
    depths, passes = group.depths(), run.passes
    try:
        while not run.finished:
            restart = run.restart
            run.advance()
            snapshot = {"measurements": plain, "run": run.state()}
            if run.restart_finished:
                planned = len(subject.split) * depths[restart]
                rates.add(restart, run.passes_of_restart, planned)
            taken = run.passes - passes
            if evaluation.tell is not None:
                remaining = run.remaining() + rates.expected(upcoming)
                evaluation.tell(f"{name}, ε = {first.eps * 255:g}/255", done + taken, remaining)
            for number, one in enumerate(group.measurements):
                if run.is_known(number) and not record.has(one.key):
                    _add(evaluation, one, run, number, files)
            if evaluation.save_is_due:
                if files is not None:
                    files.flush()
                evaluation.save(name, snapshot)
    except BaseException:
        if snapshot is not None:
            evaluation.save(name, snapshot)
        raise
    for number, one in enumerate(group.measurements):
        if not record.has(one.key):
            _add(evaluation, one, run, number, files)
        if files is not None:
            files.discard(one.key)
    run.warn()
    record.save_progress(name, None)
    return run.passes - passes


def _add(
    evaluation: Evaluation,
    one: PGDMeasurement,
    run: Trajectories,
    number: int,
    files: AdversarialFiles | None,
) -> None:
    """The row of a measurement whose verdicts are known."""
    tally = run.tally(number)
    row: dict[str, Any] = {
        "key": one.key,
        "kind": "transfer" if one.part == "transfer" else "pgd",
        "part": one.part,
        "eps": one.eps,
        "alpha": one.alpha,
        "steps": one.steps,
        "restarts": one.restarts,
        "targeted": one.targeted,
        "gradients": tally.gradients.gradients,
        "gradients_planned": tally.gradients.planned,
        "zero_gradient_entries": tally.gradients.zero,
        "nan_gradient_entries": tally.gradients.nan,
        "gradient_entries": tally.gradients.total,
        "seconds": round(tally.seconds, 3),
    }
    if one.part == "transfer":
        assert evaluation.surrogate is not None
        row["surrogate"] = evaluation.surrogate.description
        row["rule"] = "last"
    verdicts = run.standing(number).numpy()
    if files is not None:
        files.finish(one.key, {**row, "crafted_on": _crafted_on(evaluation, one)})
    evaluation.record.add(row, {one.key: verdicts})


def _crafted_on(evaluation: Evaluation, one: PGDMeasurement) -> dict[str, Any]:
    if one.part == "transfer" and evaluation.surrogate is not None:
        return evaluation.surrogate.description
    description = evaluation.subject.description
    return {name: description.get(name) for name in ("run", "epoch", "model", "weights")}
