"""The parts of natural accuracy and of PGD in shared runs: white-box, sweeps over radii and steps, and transferred."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from iaat_fast import units
from iaat_fast.data import Samples
from iaat_fast.evaluate.accuracies import natural_verdicts
from iaat_fast.evaluate.parts.adversarial import AdversarialFiles
from iaat_fast.evaluate.parts.part import Context, Part
from iaat_fast.evaluate.progress import Rates
from iaat_fast.evaluate.record import natural_row, pgd_row
from iaat_fast.evaluate.shared_pgd import AttackBudget, SharedPGD
from iaat_fast.evaluate.suites import PGDMeasurement


def natural(context: Context) -> None:
    """Add the row of the accuracy on clean images."""
    if context.record.has("natural"):
        return
    started = time.perf_counter()
    target, batch_size = context.target, context.settings.batch_size
    verdicts = natural_verdicts(target.model, target.split, batch_size=batch_size)
    row = natural_row(time.perf_counter() - started)
    context.record.add(row, {row["key"]: verdicts.numpy()})


def white_box(context: Context) -> None:
    """PGD by the target's own gradients, for those of the parts "pgd", "eps-sweep" and "steps-sweep" asked for."""
    measurements = [
        measurement
        for part in (PGD, EPS_SWEEP, STEPS_SWEEP)
        if part.name in (context.settings.parts or ())
        for measurement in context.suite.attacks_of(part.name)
    ]
    _SharedRuns(context, "white-box", context.target.model).measure(measurements)


def transfer(context: Context) -> None:
    """PGD crafted on the surrogate and scored on the target, by the last iterates."""
    assert context.settings.surrogate is not None
    surrogate = context.settings.surrogate.model
    _SharedRuns(context, "transfer", surrogate).measure(context.suite.attacks_of("transfer"))


def _lacks_surrogate(given: Collection[str], split: Samples | None) -> str | None:
    if "surrogate" in given:
        return None
    return "a surrogate, a run of the same configuration and another seed (--against)"


NATURAL = Part(name="natural", help="accuracy on clean images", measure=natural)
PGD = Part(name="pgd", help="PGD of several steps and restarts, at each radius", measure=white_box)
EPS_SWEEP = Part(
    name="eps-sweep", help="PGD-100 over radii, up to twice the largest", measure=white_box
)
STEPS_SWEEP = Part(name="steps-sweep", help="PGD of 10 to 2,000 steps", measure=white_box)
TRANSFER = Part(
    name="transfer",
    help="PGD crafted on the run that --against names",
    measure=transfer,
    lacks=_lacks_surrogate,
)


@dataclass
class _Group:
    """Measurements that share a run, since radius, step size and `targeted` are the same."""

    measurements: list[PGDMeasurement]

    @property
    def budgets(self) -> list[AttackBudget]:
        return [
            AttackBudget(name=m.key, steps=m.steps, restarts=m.restarts) for m in self.measurements
        ]

    def steps(self) -> list[int]:
        """Most steps of each restart."""
        most = max(m.restarts for m in self.measurements)
        return [
            max(m.steps for m in self.measurements if m.restarts > restart)
            for restart in range(most)
        ]


def _groups(measurements: Sequence[PGDMeasurement]) -> list[_Group]:
    groups: dict[tuple[Any, ...], _Group] = {}
    for one in measurements:
        group = groups.setdefault((one.eps, one.alpha, one.targeted), _Group([]))
        group.measurements.append(one)
    return list(groups.values())


class _SharedRuns:
    """Runs of `SharedPGD` on one model, group after group; their state is saved under `name`."""

    def __init__(self, context: Context, name: str, attacked: nn.Module) -> None:
        self._context, self._name, self._attacked = context, name, attacked
        self._rates, self._passes = Rates(), 0

    def measure(self, measurements: Sequence[PGDMeasurement]) -> None:
        """Add the rows that the record does not have yet."""
        record, samples = self._context.record, len(self._context.target.split)
        kept = record.progress(self._name)
        if kept is not None:
            # An interrupted group is finished first, with the measurements that it was started with.
            group = _Group([PGDMeasurement(**plain) for plain in kept["measurements"]])
            self._run(group, kept["run"], upcoming=[])
        groups = _groups([one for one in measurements if not record.has(one.key)])
        upcoming = [[samples * steps for steps in group.steps()] for group in groups]
        for number, group in enumerate(groups):
            self._run(group, None, upcoming=upcoming[number + 1 :])

    def _run(self, group: _Group, state: Any, *, upcoming: list[list[int]]) -> None:
        """Run a group to its end, from `state` if there is one, adding rows as soon as they are known."""
        context = self._context
        samples = len(context.target.split)
        files = self._files(group, fresh=state is None)
        run = self._start(group, state, files)
        plain = [dataclasses.asdict(one) for one in group.measurements]
        snapshot = None if state is None else {"measurements": plain, "run": state}
        steps, before, eps = group.steps(), run.passes, group.measurements[0].eps
        try:
            while not run.finished:
                restart = run.restart
                run.advance()
                snapshot = {"measurements": plain, "run": run.state()}
                if run.restart_finished:
                    self._rates.add(restart, run.passes_of_restart, samples * steps[restart])
                if context.settings.tell is not None:
                    done = self._passes + run.passes - before
                    remaining = run.remaining() + self._rates.expected(upcoming)
                    context.tell(f"{self._name}, {units.radius_name(eps)}/255", done, remaining)
                self._add_known(group, run, files)
                if context.save_is_due:
                    if files is not None:
                        files.flush()
                    context.save(self._name, snapshot)
        except BaseException:
            if snapshot is not None:
                context.save(self._name, snapshot)
            raise
        self._add_known(group, run, files)
        if files is not None:
            for one in group.measurements:
                files.discard(one.key)
        run.warn()
        context.record.save_progress(self._name, None)
        self._passes += run.passes - before

    def _start(self, group: _Group, state: Any, files: AdversarialFiles | None) -> SharedPGD:
        target, settings = self._context.target, self._context.settings
        first = group.measurements[0]
        own = self._attacked is target.model
        run = SharedPGD(
            self._attacked,
            target.split,
            group.budgets,
            eps=first.eps,
            alpha=first.alpha,
            targeted=first.targeted,
            batch_size=settings.batch_size,
            seed=settings.seed,
            any_iterate=settings.any_iterate and own,
            judge=None if own else target.model,
            keep=None if files is None else files.keep,
        )
        if state is not None:
            try:
                run.load(state)
            except ValueError as error:
                raise ValueError(
                    f"{self._context.record.path}/progress.pt: {error}; delete it to do without"
                ) from error
        return run

    def _files(self, group: _Group, *, fresh: bool) -> AdversarialFiles | None:
        context = self._context
        if not context.settings.save_adversarial or context.record.path is None:
            return None
        keys = [one.key for one in group.measurements]
        return AdversarialFiles(
            context.record.path / "adversarial", keys, context.target, fresh=fresh
        )

    def _add_known(self, group: _Group, run: SharedPGD, files: AdversarialFiles | None) -> None:
        """Add the rows of measurements whose verdicts are final by now."""
        record, target = self._context.record, self._context.target
        surrogate = self._context.settings.surrogate
        for number, one in enumerate(group.measurements):
            if record.has(one.key) or not run.is_known(number):
                continue
            tally = run.tally(number)
            row = pgd_row(one, tally.gradients, tally.seconds)
            crafted_on = {
                name: target.description.get(name) for name in ("run", "epoch", "model", "weights")
            }
            if one.part == "transfer":
                assert surrogate is not None
                crafted_on = surrogate.description
                row.update(surrogate=crafted_on, rule="last")
            if files is not None:
                files.finish(one.key, {**row, "crafted_on": crafted_on})
            record.add(row, {one.key: run.standing(number).numpy()})
