"""The loop of a sweep: starts jobs that are ready, waits, and ends all cleanly at Ctrl-C or SIGTERM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iaat_fast.sweep.display import Display
from iaat_fast.sweep.jobs import Job
from iaat_fast.sweep.launchers import Launcher, Log, Started
from iaat_fast.train.signals import StopSignals
from iaat_fast.validate import one_line

POLL_S = 0.2


@dataclass
class Outcome:
    """The jobs that did not end well, by name.

    Attributes:
        failed: for each job that failed, the last line of its log.
        blocked: for each job that was not started, the failed job that it was waiting for.
        signum: the signal that stopped the sweep, or None.
    """

    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    signum: int | None = None


def drive(jobs: Sequence[Job], launcher: Launcher, logs: Path, display: Display) -> Outcome:
    """Run the jobs that are not done, each as soon as the jobs before it (`Job.after`) are done.

    Jobs that come after a failed job are not started; the others continue. The first Ctrl-C or SIGTERM
    asks the running jobs to save their state, and waits for them.
    """
    outcome = Outcome()
    finished = {job.name for job in jobs if job.state == "done"}
    waiting = [job for job in jobs if job.name not in finished]
    running: dict[str, tuple[Job, Started, Log]] = {}
    with display, StopSignals() as signals:
        display.start(total=len(jobs), done=len(finished))
        while waiting or running:
            if signals.received is not None and outcome.signum is None:
                outcome.signum = signals.received
                waiting = []
                display.stopping(len(running))
                for _, started, _ in running.values():
                    started.stop()
            for job in _ready(waiting, finished, free=launcher.slots - len(running)):
                waiting.remove(job)
                log = Log(logs / f"{job.name}.log")
                try:
                    log.begin(job.command)
                    started = launcher.start(job.name, job.command, log.path)
                except OSError as error:
                    outcome.failed[job.name] = f"not started, {one_line(error)}"
                    display.failed(job, outcome.failed[job.name], log)
                    continue
                running[job.name] = (job, started, log)
                display.started(job, log)
            for name, (job, started, log) in list(running.items()):
                status = started.poll()
                if status is None:
                    continue
                del running[name]
                if job.state == "done":
                    finished.add(name)
                    display.done(job)
                elif outcome.signum is not None:
                    display.stopped(job)
                else:
                    outcome.failed[name] = log.failure(status)
                    display.failed(job, outcome.failed[name], log)
            waiting = _without_blocked(waiting, outcome)
            display.refresh()
            if running:
                time.sleep(POLL_S)
    return outcome


def _ready(waiting: Sequence[Job], finished: set[str], *, free: int) -> list[Job]:
    """The first jobs, at most `free`, that do not wait for others."""
    return [job for job in waiting if finished.issuperset(job.after)][: max(free, 0)]


def _without_blocked(waiting: Sequence[Job], outcome: Outcome) -> list[Job]:
    """`waiting` without the jobs that come after a failed one, which are noted in `outcome`."""
    for job in waiting:
        for before in job.after:
            if before in outcome.failed:
                outcome.blocked[job.name] = before
    return [job for job in waiting if job.name not in outcome.blocked]
