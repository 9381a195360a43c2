"""The jobs of a sweep: a training and an evaluation per run, and the state of each."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iaat_fast import validate
from iaat_fast.command_line import UsageError, again, interpreter
from iaat_fast.evaluate import SUITES
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import read_json
from iaat_fast.sweep.grid import Run, surrogate

Stage = Literal["train", "evaluate"]
State = Literal["done", "resumes", "new"]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The evaluation of every run.

    Args:
        name: one of `iaat_fast.evaluate.SUITES`.
        flags: further flags of `python -m iaat_fast.evaluate`.

    Raises:
        ValueError: an unknown suite, or a flag that the sweep sets itself.
    """

    name: str
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate.choice("--suite", self.name, SUITES)
        for word in self.flags:
            flag = word.partition("=")[0]
            if flag in ("--suite", "--against", "--json", "--model", "--weights", "--overwrite"):
                raise UsageError(f"{flag}: set by the sweep, or not for one")

    def parts(self, *, surrogate: bool) -> tuple[str, ...]:
        """The parts that must be measured: transfer only with a surrogate.

        Corruptions are left out, since only the evaluation knows whether it can measure them; its record says whether
        it is complete.
        """
        suite = [part for part in SUITES[self.name].parts if part != "corruptions"]
        parts = self._given.parts or suite
        return tuple(part for part in parts if part != "transfer" or surrogate)

    @property
    def transfers(self) -> bool:
        """Whether transfer attacks are measured, which need a surrogate."""
        return "transfer" in self.parts(surrogate=True)

    def is_done(self, record: dict[str, Any], *, samples: int, surrogate: bool) -> bool:
        """Whether a record is complete and has all that is asked for, on `samples` test images."""
        measured = {row.get("part") for row in record.get("measurements", [])}
        return (
            record.get("complete") is True
            and _samples(record) >= min(samples, self._given.limit or samples)
            and measured.issuperset(self.parts(surrogate=surrogate))
        )

    def matches(self, record: dict[str, Any]) -> bool:
        """Whether a record is of this suite, with the same seed and rule."""
        rule = "any" if self._given.any_iterate else "last"
        asked = (self.name, self._given.seed, rule)
        return asked == (record.get("suite"), record.get("seed"), record.get("rule"))

    @property
    def _given(self) -> argparse.Namespace:
        """The flags by which the record of this evaluation is recognised."""
        flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        flags.add_argument("--parts", nargs="+")
        flags.add_argument("--limit", type=int)
        flags.add_argument("--seed", type=int, default=0)
        flags.add_argument("--any-iterate", action="store_true")
        try:
            return flags.parse_known_args(list(self.flags))[0]
        except argparse.ArgumentError as error:
            raise UsageError(f"after the second --: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of a sweep.

    `after` are the names of the jobs that must be done before it starts; `state` is read from the
    run folder each time.
    """

    run: Run
    stage: Stage
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    suite: Suite | None = None

    @property
    def name(self) -> str:
        """Its name in messages and logs."""
        return f"{self.run.name}.{self.stage}"

    @property
    def state(self) -> State:
        """Whether it is done, was started before (and resumes), or is new."""
        folder = RunFolder(self.run.folder)
        trained = is_trained(folder)
        if self.suite is None:
            return "done" if trained else "resumes" if folder.is_run else "new"
        record = suite_record(folder, self.suite) if trained else None
        if record is None:
            return "new"
        samples, surrogate = folder.results().get("samples", 0), "--against" in self.command
        done = self.suite.is_done(record, samples=samples, surrogate=surrogate)
        return "done" if done else "resumes"


def plan(runs: Sequence[Run], others: Sequence[Run] = (), *, suite: Suite | None) -> list[Job]:
    """The jobs for `runs` in the order of the runs, each training before its evaluation.

    Args:
        runs: the runs to train and evaluate.
        others: other runs of the same sweep; those that are trained may serve as surrogates.
        suite: how to evaluate; None: the closing evaluation of the training is enough.
    """
    jobs: list[Job] = []
    planned = {run.name for run in runs}
    trained = [run for run in others if is_trained(RunFolder(run.folder))]
    peers = [run for run in trained if run.name not in planned] + list(runs)
    for run in runs:
        jobs.append(Job(run=run, stage="train", command=run.command))
        if suite is None:
            continue
        against = surrogate(run, peers) if suite.transfers else None
        after = [run] if against is None else [run, against]
        words = [str(run.folder), "--suite", suite.name, *suite.flags]
        if against is not None:
            words += ["--against", str(against.folder)]
        jobs.append(
            Job(
                run=run,
                stage="evaluate",
                command=(sys.executable, "-m", "iaat_fast.evaluate", *words),
                after=tuple(f"{peer.name}.train" for peer in after if peer.name in planned),
                suite=suite,
            )
        )
    return jobs


def is_trained(folder: RunFolder) -> bool:
    """Whether a training has ended, including its closing evaluation."""
    return folder.is_run and folder.results_path.is_file()


def suite_record(folder: RunFolder, suite: Suite) -> dict[str, Any] | None:
    """The record of a run's evaluation by `suite`; of several, that on most test images; None if there is none."""
    found = [read_json(path) for path in sorted(folder.evaluation_dir.glob("*/results.json"))]
    return max((record for record in found if suite.matches(record)), key=_samples, default=None)


def _samples(record: dict[str, Any]) -> int:
    data = record.get("data")
    samples = data.get("samples") if isinstance(data, dict) else None
    return samples if isinstance(samples, int) else 0


def as_typed(command: Sequence[str]) -> str:
    """A command as a user would type it."""
    if list(command[:2]) == [sys.executable, "-m"] and command[2].startswith("iaat_fast."):
        return f"{again(command[2].removeprefix('iaat_fast.'))} {shlex.join(command[3:])}"
    return shlex.join([interpreter() if word == sys.executable else word for word in command])
