"""`python -m MODULE` in a process of its own, forked from one that has imported torch.

From its start to a command's first line an interpreter is busy for three seconds, more than most tests of a command
take besides. Arguments, environment, streams, signals and exit status are the command's; tests of how a command starts
run a Python of their own.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# Of the commands, and what they import late: flags, optimizers, ranks, the digits and figures.
IMPORTED = [
    *("iaat_fast.train.cli", "iaat_fast.evaluate.cli", "iaat_fast.sweep.cli"),
    *("tyro", "torch._dynamo", "torch.distributed.run"),
    *("sklearn.datasets", "sklearn.model_selection", "iaat_fast.report.plots"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
]

PATIENCE = 300.0
"""Seconds that no wait takes, however busy the machine is."""


class Forked:
    """What a test needs of subprocess.Popen. The process computes with one thread.

    With `group` it leads a process group of its own, to which a terminal would send its Ctrl-C. With `forking`, what it
    starts as `python -m MODULE` is forked as well. With `pipes` its standard input and output are the pipes `stdin` and
    `stdout`, else its output is a file.
    """

    def __init__(
        self,
        module: str,
        *words: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        group: bool = False,
        forking: bool = False,
        pipes: bool = False,
    ) -> None:
        _start_server()
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("out", "err")]
        for file in self._streams:
            file.touch()
        context = multiprocessing.get_context("forkserver")
        ends: list[Connection] = []
        if pipes:
            (given, write), (read, written) = (context.Pipe(duplex=False) for _ in range(2))
            ends = [given, written]
            self.stdin, self.stdout = (
                open(os.dup(end.fileno()), mode)  # noqa: SIM115
                for end, mode in ((write, "w"), (read, "r"))
            )
            write.close()
            read.close()
        arguments = (
            module,
            [str(word) for word in words],
            {**os.environ, **(env or {})},
            cwd or Path.cwd(),
            self._streams,
            ends,
            group,
            forking,
        )
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        for end in ends:
            end.close()
        atexit.register(
            self.kill
        )  # multiprocessing would wait for what a failed test leaves behind
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def output(self) -> str:
        """What is on standard output so far."""
        return self._streams[0].read_text()

    def first_line(self) -> str:
        """The first line of standard output, waited for; "" if the process has ended without one."""
        wait_until(lambda: self.poll() is not None or "\n" in self.output())
        line, end, _ = self.output().partition("\n")
        return line + end

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = PATIENCE) -> int | None:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Standard output and error, once the process has ended."""
        self.wait()
        out, err = (file.read_text() for file in self._streams)
        return out, err


class ForkedCommands:
    """In place of `subprocess` where `python -m MODULE` is started and its start is not what is tested."""

    PIPE = subprocess.PIPE
    TimeoutExpired = subprocess.TimeoutExpired

    @staticmethod
    def Popen(
        command: list[str], *, env: dict[str, str], stdin: int | None = None, **streams: object
    ) -> Forked:
        return Forked(*command[2:], env=env, pipes=stdin is not None)

    @staticmethod
    def run(command: list[str], **streams: object) -> SimpleNamespace:
        process = Forked(*command[2:])
        out, err = process.communicate()
        assert process.returncode == 0, err
        return SimpleNamespace(stdout=out)


def wait_until(there: Callable[[], object], process: Forked | None = None) -> None:
    """Return once `there()` is true; it is an error if `process` has ended before."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@functools.cache
def _start_server() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path):
        forkserver.ensure_running()


def _fork_commands() -> None:
    """From now on `python -m MODULE` is run by the process that Popen forks, which would else become a Python for it.

    Streams, environment, process group and inherited files are set by Popen, as for any command.
    """
    start = subprocess.Popen.__init__

    def __init__(self: subprocess.Popen[Any], args: Sequence[object], **keywords: Any) -> None:
        words = [str(word) for word in args if word != "-u"]
        if words[:2] != [sys.executable, "-m"]:
            return start(self, args, **keywords)
        before = keywords.pop("preexec_fn", None)
        kept = {0, 1, 2, *keywords.get("pass_fds", ())}

        def run() -> None:
            status = 1
            try:
                if before is not None:
                    before()
                for number in [int(name) for name in os.listdir("/proc/self/fd")]:
                    if (
                        number not in kept
                    ):  # among them the pipe whose end tells Popen that the command runs
                        with contextlib.suppress(OSError):
                            os.close(number)
                _run_module(words[2], words[3:], keywords["env"])
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

        start(self, args, preexec_fn=run, **keywords)

    subprocess.Popen.__init__ = __init__  # type: ignore[method-assign]


def _run(
    module: str,
    words: list[str],
    environment: dict[str, str],
    cwd: Path,
    streams: list[Path],
    ends: list[Connection],
    group: bool,
    forking: bool,
) -> None:
    if group:
        os.setpgid(0, 0)
    for descriptor, file in zip((1, 2), streams, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    for descriptor, end in enumerate(ends):
        os.dup2(end.fileno(), descriptor)
        end.close()
    if ends:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # the server's own is closed
    os.fsync = os.fstat  # type: ignore[assignment]  # as in tests/conftest.py
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))  # as -m does
    if forking:
        _fork_commands()
    _run_module(module, words, environment)


def _run_module(module: str, words: list[str], environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    # The server's own, in which every process that decodes images would import torch, is not that of a command.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
