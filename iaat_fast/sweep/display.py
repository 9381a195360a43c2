"""What a sweep prints: on a terminal a live line per running job, elsewhere plain lines; and tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.grid import Run
from iaat_fast.sweep.jobs import Job, as_typed, is_trained
from iaat_fast.sweep.launchers import Log


class Display:
    """The progress of a sweep, used as a context while it runs.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = self._failed = self._before = 0
        self._began = 0.0
        self._running: dict[str, tuple[float, Log]] = {}
        # What is printed while it is live, rich shows above the live lines.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._refreshed = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def start(self, *, total: int, done: int) -> None:
        """Print how many jobs there are, and how many of them are done already."""
        self._total, self._done = total, done
        self._began, self._before = time.monotonic(), done
        self._say(f"{total} jobs, {done} of them done")

    def started(self, job: Job, log: Log) -> None:
        """A job has been started."""
        self._running[job.name] = (time.monotonic(), log)
        self._say(f"{job.name}: started, log {log.path}")

    def done(self, job: Job) -> None:
        """A job is done."""
        self._done += 1
        self._say(
            f"{job.name}: done in {self._end(job)}; {self._done} of {self._total} jobs done{self._to_go()}"
        )

    def failed(self, job: Job, line: str, log: Log) -> None:
        """A job has failed; `line` is the last line of its log."""
        self._end(job)
        self._failed += 1
        self._say(f"{job.name}: FAILED, {line}; log {log.path}")

    def stopping(self, running: int) -> None:
        """The sweep was told to stop and waits for its jobs."""
        self._say(f"stopping: {running} jobs save their state; again to stop now")

    def stopped(self, job: Job) -> None:
        """A job has saved its state and ended."""
        self._say(f"{job.name}: stopped after {self._end(job)}")

    def refresh(self) -> None:
        """Redraw the live lines, twice a second at most."""
        if self._console.is_terminal and time.monotonic() - self._refreshed > 0.5:
            self._refreshed = time.monotonic()
            self._live.update(self._lines(), refresh=True)

    def _lines(self) -> Group:
        lines = []
        for name, (since, log) in self._running.items():
            text = f"{name}  {_duration(time.monotonic() - since)}  {log.last_line()}"
            lines.append(Text(text, no_wrap=True, overflow="ellipsis"))
        failed = f", {self._failed} failed" if self._failed else ""
        total = f"{self._done} of {self._total} jobs done, {len(self._running)} running{failed}"
        return Group(*lines, Text(total, style="bold"))

    def _to_go(self) -> str:
        """How long the jobs left will take, if as long as those done so far; "" where there are none."""
        left = self._total - self._done - self._failed
        seconds = (time.monotonic() - self._began) / max(self._done - self._before, 1) * left
        return f", about {_duration(seconds)} to go" if left else ""

    def _end(self, job: Job) -> str:
        since, _ = self._running.pop(job.name, (time.monotonic(), None))
        return _duration(time.monotonic() - since)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def jobs_table(jobs: Sequence[Job], console: Console) -> None:
    """Print every job with its state and its command."""
    for job in jobs:
        text = f"{job.state:8}{job.name}\n        {as_typed(job.command)}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def runs_table(runs: Sequence[Run], jobs: Sequence[Job]) -> Table:
    """The state of every run, and the closing evaluation of those that are trained.

    `jobs` are those of the current sweep; the state of a run without a job is taken from its folder.
    """
    table = Table()
    for name in ("run", "state", "natural (%)", "robust (%)", "mean ε (1/255)"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right")
    open_jobs = {job.run.name for job in jobs if job.state != "done"}
    for run in runs:
        folder = RunFolder(run.folder)
        trained = is_trained(folder)
        if trained:
            state = "not evaluated" if run.name in open_jobs else "done"
        else:
            state = "partly trained" if folder.is_run else "not trained"
        results = folder.results() if trained else {}
        cells = [
            _number(results.get("natural_accuracy"), 100),
            _number(results.get("robust_accuracy"), 100),
            _number(results.get("eps_mean"), 255),
        ]
        table.add_row(run.name, state, *cells)
    return table


def _number(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{value * scale:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
