"""Jobs of a sweep on a SLURM cluster, through submitit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from iaat_fast.command_line import UsageError
from iaat_fast.storage import read_json, write_json
from iaat_fast.sweep.launchers import Started
from iaat_fast.validate import one_line

TIMEOUT_MIN = 24 * 60
"""The default time limit of a job. A job that reaches it is queued again."""
GENERIC = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
"""Parameters of submitit without the prefix `slurm_`."""


class SubmititLauncher:
    """Jobs submitted to SLURM by submitit.

    A job that SLURM preempts, or that reaches its time limit, saves its state and is queued again.
    Jobs of an earlier call of the sweep that are still queued or running are waited for, not submitted
    a second time.

    Args:
        folder: where submitit keeps its files.
        slots: jobs submitted at once.
        parameters: of `submitit.AutoExecutor.update_parameters`, those of SLURM with or without
            the prefix `slurm_`: `{"partition": "gpu", "timeout_min": 600}`.
        cluster: "slurm", or "local" to test without a cluster.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        UsageError: there is no SLURM here, or a parameter is unknown or of the wrong type.
    """

    def __init__(
        self,
        folder: Path,
        slots: int,
        *,
        parameters: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ) -> None:
        self.slots = slots
        self.cluster = cluster
        self._folder = folder
        self._submitit = _import_submitit()
        if cluster == "slurm" and shutil.which("srun") is None:
            raise UsageError("--launcher submitit: no SLURM here (no srun on the PATH)")
        named = {
            key if key in GENERIC or key.startswith("slurm_") else f"slurm_{key}": value
            for key, value in {"timeout_min": TIMEOUT_MIN, **(parameters or {})}.items()
        }
        self._executor = self._submitit.AutoExecutor(folder=folder, cluster=cluster)
        try:
            self._executor.update_parameters(**named)
        except (NameError, AssertionError) as error:
            raise UsageError(f"--slurm: {one_line(error)}") from error

    def start(self, name: str, command: Sequence[str], log: Path) -> Started:
        """Submit `command`, unless it is queued or running already."""
        ticket = self._folder / f"{name}.json"
        job = self._earlier(ticket)
        if job is None:
            self._executor.update_parameters(name=name)
            job = self._executor.submit(Command(command, log))
            write_json(ticket, {"cluster": self.cluster, "job": job.job_id})
        return _SubmittedJob(job)

    def _earlier(self, ticket: Path) -> Any:
        """The job that an earlier sweep submitted, if it has not ended."""
        if self.cluster != "slurm" or not ticket.is_file():
            return None
        job = self._submitit.SlurmJob(self._folder, read_json(ticket)["job"])
        known = job.watcher.get_state(job.job_id, mode="force") != "UNKNOWN"
        return job if known and not job.done() else None


class _SubmittedJob:
    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        # There is no result if the job was cancelled or its machine died.
        return 1 if self._job.exception() is not None else int(self._job.result())

    def stop(self) -> None:
        self._job.cancel(check=False)


class Command:
    """The content of a submitted job: runs a command as a process, with its output appended to a log.

    A call returns the exit status. submitit calls `checkpoint` when the job is preempted or runs out
    of time, and queues what that returns.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = tuple(command)
        self.log = Path(log).absolute()
        self._pid: int | None = None

    def __call__(self) -> int:
        """Run the command to its end."""
        with open(self.log, "ab") as output:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_ignore_requeue_signals,
            )
        self._pid = process.pid
        try:
            status = process.wait()
        except BaseException:
            self._end()
            raise
        self._pid = None
        return status

    def checkpoint(self) -> Any:
        """Let the command save its state and end; returns the same command, to be queued again."""
        self._end()
        return _import_submitit().helpers.DelayedSubmission(Command(self.command, self.log))

    def _end(self) -> None:
        if self._pid is None:
            return
        # Not by methods of Popen: this may run in a signal handler, while `wait` holds Popen's lock.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)


def _ignore_requeue_signals() -> None:
    """In the child: ignore the signals by which SLURM announces the end; submitit handles them by `checkpoint`."""
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


def parse_parameters(words: Sequence[str]) -> dict[str, Any]:
    """`["partition=gpu", "timeout_min=60"]` as a dictionary, with numbers and booleans as such.

    Raises:
        UsageError: a word without =.
    """
    parameters: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise UsageError(f"--slurm: {word!r}, expected KEY=VALUE")
        try:
            parameters[key] = json.loads(text)
        except json.JSONDecodeError:
            parameters[key] = text
    return parameters


def _import_submitit() -> ModuleType:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--launcher submitit needs submitit: pip install 'iaat-fast[slurm]'"
        ) from error
    module: ModuleType = submitit
    return module
