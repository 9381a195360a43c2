"""The parts of an evaluation: natural accuracy, PGD on shared trajectories, transfer, corruptions, saved examples.

A part is a function of a `Context` in the table `PARTS`. It adds a row to `context.record` for each
measurement that the record does not have yet, may keep its state by `context.save`, and tells how far it is
by `context.tell`, where that is given. It may be stopped at any moment by an exception, and is then called again,
with the record as it was left.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from iaat_fast.evaluate.accuracies import natural_verdicts
from iaat_fast.evaluate.adversarial import AdversarialFiles, score
from iaat_fast.evaluate.autoattack_part import measure_autoattack
from iaat_fast.evaluate.context import Context
from iaat_fast.evaluate.corruptions.part import record_corruptions
from iaat_fast.evaluate.outlook import Rates
from iaat_fast.evaluate.rows import natural_row, pgd_row, rounded
from iaat_fast.evaluate.suites import PGDMeasurement
from iaat_fast.evaluate.trajectories import Mark, Trajectories

WHITE_BOX = ("pgd", "eps-sweep", "steps-sweep")
"""Parts that attack the subject itself by PGD: one run of trajectories serves them all."""


def natural(context: Context) -> None:
    """Accuracy on the images as they are."""
    if context.record.has("natural"):
        return
    started = time.perf_counter()
    subject = context.subject
    verdicts = natural_verdicts(subject.model, subject.split, batch_size=context.batch_size)
    row = natural_row(time.perf_counter() - started)
    context.record.add(row, {row["key"]: verdicts.numpy()})


def white_box(context: Context) -> None:
    """PGD on the subject's own gradients: the parts of `WHITE_BOX` that were asked for."""
    measurements = [
        measurement
        for part in WHITE_BOX
        if part in context.parts
        for measurement in context.suite.attacks_of(part, eps=context.eps, alpha=context.alpha)
    ]
    _pgd(context, "white-box", measurements, context.subject.model)


def transfer(context: Context) -> None:
    """PGD crafted on the surrogate and scored on the subject, by the last iterates."""
    assert context.surrogate is not None
    measurements = context.suite.attacks_of("transfer", eps=context.eps, alpha=context.alpha)
    _pgd(context, "transfer", measurements, context.surrogate.model)


def corruptions(context: Context) -> None:
    """Accuracy under each corruption, and their summary."""
    assert context.corrupted is not None
    record_corruptions(
        context.subject,
        context.corrupted,
        context.record,
        batch_size=context.batch_size,
        tell=context.tell,
    )


def adversarial_key(file: Path) -> str:
    """Key of the row of a file of saved examples."""
    return f"adversarial-{file.stem}"


def adversarial(context: Context) -> None:
    """Saved examples, made on whatever model, scored on this one."""
    for file in context.adversarial:
        key = adversarial_key(file)
        if context.record.has(key):
            continue
        started = time.perf_counter()
        verdicts, about = score(context.subject, file, batch_size=context.batch_size)
        row = {
            "key": key,
            "kind": "adversarial",
            "part": "adversarial",
            "file": str(file),
            "crafted_on": about,
            "seconds": rounded(time.perf_counter() - started),
        }
        context.record.add(row, {key: verdicts.numpy()})


PARTS: dict[str, Callable[[Context], None]] = {
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
    context: Context,
    name: str,
    measurements: Sequence[PGDMeasurement],
    attacked: nn.Module,
) -> None:
    record, samples = context.record, len(context.subject.split)
    rates, done = Rates(), 0.0
    begun = record.progress(name)
    if begun is not None:
        # What was begun is finished first, with the measurements that it was begun with.
        group = _Group([PGDMeasurement(**plain) for plain in begun["measurements"]])
        done += _run(context, name, group, attacked, begun["run"], done, rates, [])
    groups: dict[tuple[Any, ...], _Group] = {}
    for one in measurements:
        if not record.has(one.key):
            groups.setdefault((one.eps, one.alpha, one.targeted), _Group([])).measurements.append(
                one
            )
    upcoming = [[samples * depth for depth in group.depths()] for group in groups.values()]
    for group in groups.values():
        upcoming.pop(0)
        done += _run(context, name, group, attacked, None, done, rates, upcoming)


def _run(
    context: Context,
    name: str,
    group: _Group,
    attacked: nn.Module,
    state: Any,
    done: float,
    rates: Rates,
    upcoming: list[list[int]],
) -> float:
    """Run a group to its end, adding rows as they come; returns the gradient passes it took."""
    record, subject = context.record, context.subject
    first = group.measurements[0]
    own = attacked is subject.model
    files = None
    if context.save_adversarial and record.path is not None:
        keys = [one.key for one in group.measurements]
        files = AdversarialFiles(record.path / "adversarial", keys, subject, anew=state is None)
    run = Trajectories(
        attacked,
        subject.split,
        group.marks,
        eps=first.eps,
        alpha=first.alpha,
        targeted=first.targeted,
        batch_size=context.batch_size,
        seed=context.seed,
        any_iterate=context.any_iterate and own,
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
            if context.tell is not None:
                remaining = run.remaining() + rates.expected(upcoming)
                context.tell(f"{name}, ε = {first.eps * 255:g}/255", done + taken, remaining)
            for number, one in enumerate(group.measurements):
                if run.is_known(number) and not record.has(one.key):
                    _add(context, one, run, number, files)
            if context.save_is_due:
                if files is not None:
                    files.flush()
                context.save(name, snapshot)
    except BaseException:
        if snapshot is not None:
            context.save(name, snapshot)
        raise
    for number, one in enumerate(group.measurements):
        if not record.has(one.key):
            _add(context, one, run, number, files)
        if files is not None:
            files.discard(one.key)
    run.warn()
    record.save_progress(name, None)
    return run.passes - passes


def _add(
    context: Context,
    one: PGDMeasurement,
    run: Trajectories,
    number: int,
    files: AdversarialFiles | None,
) -> None:
    """The row of a measurement whose verdicts are known."""
    tally = run.tally(number)
    row = pgd_row(one, tally.gradients, tally.seconds)
    if one.part == "transfer":
        assert context.surrogate is not None
        row["surrogate"] = context.surrogate.description
        row["rule"] = "last"
    verdicts = run.standing(number).numpy()
    if files is not None:
        files.finish(one.key, {**row, "crafted_on": _crafted_on(context, one)})
    context.record.add(row, {one.key: verdicts})


def _crafted_on(context: Context, one: PGDMeasurement) -> dict[str, Any]:
    if one.part == "transfer" and context.surrogate is not None:
        return context.surrogate.description
    description = context.subject.description
    return {name: description.get(name) for name in ("run", "epoch", "model", "weights")}
