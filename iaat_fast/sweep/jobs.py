"""The jobs of a sweep: a training and an evaluation per run, and how far each of them is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iaat_fast.command_line import interpreter
from iaat_fast.files import read_json
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.grid import Run, surrogate

Stage = Literal["train", "evaluate"]
State = Literal["done", "resumes", "new"]
SUITES = ("quick", "cifar", "imagenet")
WITH_TRANSFER = ("cifar",)
"""The suites that attack a run from another run's model as well."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The evaluation that every run gets.

    Args:
        name: one of `SUITES`.
        flags: further flags of `python -m iaat_fast.evaluate`.
    """

    name: str
    flags: tuple[str, ...] = ()

    @property
    def transfers(self) -> bool:
        """Whether a surrogate is of use."""
        chosen = "--parts" in self.flags
        return self.name in WITH_TRANSFER and (not chosen or "transfer" in self.flags)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of a sweep.

    `after` are the names of the jobs that must be done before it starts; `state` is read off the
    run folder each time, so that nothing needs to be remembered.
    """

    run: Run
    stage: Stage
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    suite: str | None = None

    @property
    def name(self) -> str:
        """What messages and logs call it."""
        return f"{self.run.name}.{self.stage}"

    @property
    def state(self) -> State:
        """Whether it is done, has begun, or neither."""
        folder = RunFolder(self.run.folder)
        if self.suite is None:
            return "done" if is_trained(folder) else "resumes" if folder.is_run else "new"
        record = suite_record(folder, self.suite)
        if record is None or not is_trained(folder):
            return "new"
        wants_transfer = "--against" in self.command
        return "done" if _is_complete(record, wants_transfer) else "resumes"


def plan(runs: Sequence[Run], others: Sequence[Run] = (), *, suite: Suite | None) -> list[Job]:
    """The jobs for `runs` in the order of the runs, each training before its evaluation.

    Args:
        runs: what to train.
        others: runs of the same sweep that are trained already, or not meant to be: the trained
            ones may serve as surrogates.
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
                suite=suite.name,
            )
        )
    return jobs


def is_trained(folder: RunFolder) -> bool:
    """Whether a training has come to its end, its closing evaluation included."""
    return folder.is_run and folder.results_path.is_file()


def suite_record(folder: RunFolder, suite: str) -> dict[str, Any] | None:
    """The record of an evaluation by `suite`: the complete one with the most samples, or any."""
    found = [read_json(path) for path in folder.evaluation_dir.glob("*/results.json")]
    records = [record for record in found if record.get("suite") == suite]
    return max(records, key=lambda r: (r.get("complete") is True, _samples(r)), default=None)


def _samples(record: dict[str, Any]) -> int:
    data = record.get("data")
    samples = data.get("samples") if isinstance(data, dict) else None
    return samples if isinstance(samples, int) else 0


def _is_complete(record: dict[str, Any], wants_transfer: bool) -> bool:
    rows = record.get("measurements", [])
    transferred = any(row.get("kind") == "transfer" for row in rows)
    return record.get("complete") is True and (transferred or not wants_transfer)


def as_typed(command: Sequence[str]) -> str:
    """A command as a user would type it."""
    words = [interpreter() if word == sys.executable else word for word in command]
    return shlex.join(words)
