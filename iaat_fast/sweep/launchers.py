"""Starting the jobs of a sweep: the interface of launchers, the launcher of local processes, and the jobs' logs."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from iaat_fast.storage import naming


class Started(Protocol):
    """A running job."""

    def poll(self) -> int | None:
        """Its exit status, or None while it has not ended."""

    def stop(self) -> None:
        """Ask it to save its state and end; returns at once."""


class Launcher(Protocol):
    """Starts jobs."""

    slots: int
    """How many jobs may run at once."""

    def start(self, name: str, command: Sequence[str], log: Path) -> Started:
        """Start `command`; what it prints is appended to the file `log`."""


class LocalLauncher:
    """Jobs as processes of this machine, which share its cores and its GPUs.

    Every job gets cores / slots threads (unless OMP_NUM_THREADS is set) and, if there are several
    GPUs, one of them. If this process dies in any way, the jobs are asked to save their state and end.

    Args:
        slots: processes at once.
        lock: a file descriptor that the processes inherit, see `SweepFolder.lock`.
    """

    def __init__(self, slots: int, *, lock: int) -> None:
        self.slots = slots
        self._lock = lock
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * slots

    def start(self, name: str, command: Sequence[str], log: Path) -> Started:
        """Start `command` in a free slot."""
        busy = [process is not None and process.poll() is None for process in self._processes]
        slot = busy.index(False)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **share(slot, self.slots, gpus=_gpus())},
                pass_fds=(self._lock,),
                # In a group of its own, Ctrl-C reaches only the sweep: a second signal would end a job without saving.
                process_group=0,
                preexec_fn=_end_with_parent,
            )
        self._processes[slot] = process
        return _Process(process)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()


def share(slot: int, slots: int, *, gpus: Sequence[str]) -> dict[str, str]:
    """The environment variables that give a job its share of the machine.

    >>> share(2, 4, gpus=["0", "1"])["CUDA_VISIBLE_DEVICES"]
    '0'
    """
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // slots)))
    variables = {"OMP_NUM_THREADS": threads}
    if slots > 1 and len(gpus) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return variables


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In the child, before it becomes the job: ask for a SIGTERM when the parent dies."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Log:
    """The file to which a job's output is appended, every time the job is started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0

    def begin(self, command: Sequence[str]) -> None:
        """Write a line with the time and the command, at each start of the job."""
        head = f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n"
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(head)
            self._start = file.tell()

    def last_line(self) -> str:
        """The last line printed since the job was started; "" if there is none."""
        with open(self.path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(self._start, end - 4096))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def failure(self, status: int) -> str:
        """The last line that a failed job printed, and how it ended."""
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        line = self.last_line()
        return f"{line} ({how})" if line else how
