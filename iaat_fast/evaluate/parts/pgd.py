"""Natural accuracy, and PGD in runs that attacks share: white-box, the sweeps, and transferred from a surrogate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from iaat_fast.evaluate.accuracies import natural_verdicts
from iaat_fast.evaluate.parts.adversarial import AdversarialFiles
from iaat_fast.evaluate.parts.part import Context
from iaat_fast.evaluate.progress import Rates
from iaat_fast.evaluate.record import natural_row, pgd_row
from iaat_fast.evaluate.shared_pgd import AttackBudget, SharedPGD
from iaat_fast.evaluate.suites import PGDMeasurement

WHITE_BOX = ("pgd", "eps-sweep", "steps-sweep")
"""Parts that attack the target itself by PGD: one run serves them all."""


def natural(context: Context) -> None:
    """Accuracy on the images as they are."""
    if context.record.has("natural"):
        return
    started = time.perf_counter()
    target = context.target
    verdicts = natural_verdicts(target.model, target.split, batch_size=context.batch_size)
    row = natural_row(time.perf_counter() - started)
    context.record.add(row, {row["key"]: verdicts.numpy()})


def white_box(context: Context) -> None:
    """PGD on the target's own gradients: the parts of `WHITE_BOX` that were asked for."""
    measurements = [
        measurement
        for part in WHITE_BOX
        if part in context.parts
        for measurement in context.suite.attacks_of(part, eps=context.eps, alpha=context.alpha)
    ]
    _pgd(context, "white-box", measurements, context.target.model)


def transfer(context: Context) -> None:
    """PGD crafted on the surrogate and scored on the target, by the last iterates."""
    assert context.surrogate is not None
    measurements = context.suite.attacks_of("transfer", eps=context.eps, alpha=context.alpha)
    _pgd(context, "transfer", measurements, context.surrogate.model)


@dataclass
class _Group:
    """Measurements that share a run: of one radius, step size and rule of targets."""

    measurements: list[PGDMeasurement]

    @property
    def budgets(self) -> list[AttackBudget]:
        return [
            AttackBudget(name=m.key, steps=m.steps, restarts=m.restarts) for m in self.measurements
        ]

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
    record, samples = context.record, len(context.target.split)
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
    record, target = context.record, context.target
    first = group.measurements[0]
    own = attacked is target.model
    files = None
    if context.save_adversarial and record.path is not None:
        keys = [one.key for one in group.measurements]
        files = AdversarialFiles(record.path / "adversarial", keys, target, fresh=state is None)
    run = SharedPGD(
        attacked,
        target.split,
        group.budgets,
        eps=first.eps,
        alpha=first.alpha,
        targeted=first.targeted,
        batch_size=context.batch_size,
        seed=context.seed,
        any_iterate=context.any_iterate and own,
        judge=None if own else target.model,
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
                planned = len(target.split) * depths[restart]
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
    run: SharedPGD,
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
    description = context.target.description
    return {name: description.get(name) for name in ("run", "epoch", "model", "weights")}
