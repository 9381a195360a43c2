"""What surrounds every command: the packages it needs, errors before it starts, its exit status, closed pipes.

Kept apart from command_line.py, because it runs before torch and tyro, which take seconds, are imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import NoReturn

OUTPUTS = (1, 2)
"""File descriptors of standard output and error."""

COMMANDS = {
    "train": "train a network: clean, adversarially, with radii per sample",
    "evaluate": "accuracy, natural and under attack, of a run or your own checkpoint",
    "report": "finished runs as a table, or as a page of tables and figures",
    "sweep": "train and evaluate a grid of runs: methods x radii x seeds",
    "plan": "what a run will cost: operations, hours, memory",
}
"""The commands, each in `iaat_fast.<name>`, and what they do."""

NEEDS = {
    "train": ("tyro", "rich", "tqdm", "matplotlib"),
    "evaluate": ("tyro", "rich", "tqdm"),
    "report": ("tyro",),
    "sweep": ("tyro", "rich", "tqdm", "matplotlib"),
    "plan": ("tyro", "rich", "tqdm"),
}
"""Modules that a command always needs, in addition to the library's own; what only some runs need, they report."""

EXTRAS = {
    "cv2": "corruptions",
    "imagecorruptions": "corruptions",
    "jinja2": "train",
    "matplotlib": "train",
    "PIL": "images",
    "rich": "train",
    "scipy": "train",
    "sklearn": "train",
    "submitit": "slurm",
    "tensorboard": "train",
    "torchvision": "images",
    "tqdm": "train",
    "tyro": "train",
}
"""Modules that the package does not require, each with the extra that installs it."""


def explain_early_errors() -> None:
    """Until `start` runs, report Ctrl-C and a bad IAAT_FAST_BACKEND in one line.

    A package is imported, and torch with it, before its __main__ runs.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop_early)

    def explain(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if text := (str(error) if _is_backend_error(error) else what_to_install(error)):
            print(f"iaat_fast: error: {text}", file=sys.stderr, flush=True)
            os._exit(2)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = explain


def start(command: str, *, interrupted: str) -> NoReturn:
    """Run `iaat_fast.<command>.cli.main` on this process's arguments, and exit with its status.

    Ctrl-C is one line, also while torch is imported, which takes seconds; so is an IAAT_FAST_BACKEND that is not
    available, and a module that is not installed. `--version` is answered without importing anything. Where the reader
    of the output has gone (`| head`) the exit is silent, with status 1 as Python's own.

    Args:
        command: name of the package.
        interrupted: what to print at a KeyboardInterrupt that the command does not handle; "" for nothing.
    """
    sys.excepthook = sys.__excepthook__
    if signal.getsignal(signal.SIGINT) is _stop_early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "--version" in sys.argv[1:]:
        print(versions())
        sys.exit(0)
    try:
        status = _run(command, interrupted)
    except BrokenPipeError:
        if not output_is_gone():
            raise
        status = 1
    if output_is_gone():
        # Python flushes both once more when it exits, and would complain.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in OUTPUTS:
            os.dup2(nowhere, descriptor)
        status = status or 1
    # Python ends a process by SIGINT, whatever its status, if the last code run from a string (a named tuple, a scipy
    # module) was left by Ctrl-C; this is code run from a string.
    exec("")
    sys.exit(status)


def prog(command: str) -> str:
    """How a command is called where this one was, for its usage and its messages."""
    by_script = sys.argv[0] in {f"iaat-fast {name}" for name in COMMANDS}
    return f"iaat-fast {command}" if by_script else f"python -m iaat_fast.{command}"


def versions() -> str:
    """The versions of iaat_fast and of torch and the backends that are installed, in one line; imports none of them."""
    from importlib import metadata

    from iaat_fast import __version__

    def installed(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ""

    backends = [
        *(["native"] if _is_there("iaat_fast._C") else []),
        *([f"triton {version}"] if (version := installed("triton")) else []),
        "reference",
    ]
    torch = installed("torch") or "not installed"
    return f"iaat_fast {__version__}, torch {torch}, backends: {', '.join(backends)}"


def what_to_install(error: BaseException) -> str | None:
    """ "needs X: pip install ..." where the error is that an optional module, or torch, is not installed."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return None
    if name in ("torch", "numpy"):
        return f"needs {name}: pip install {name}"
    return f"needs {name}: pip install 'iaat-fast[{EXTRAS[name]}]'" if name in EXTRAS else None


def output_is_gone() -> bool:
    """Whether nothing reads this process's standard output or error any more."""
    outputs = select.poll()
    for descriptor in OUTPUTS:
        outputs.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in outputs.poll(0))


def _run(command: str, interrupted: str) -> int:
    missing = [name for name in NEEDS[command] if not _is_there(name)]
    if missing:
        names = ", ".join(missing)
        print(f"iaat_fast.{command} needs {names}: pip install 'iaat-fast[train]'", file=sys.stderr)
        return 2
    try:
        with _stopped_at_once(interrupted):
            try:
                importlib.import_module("iaat_fast.ops")
            except (ValueError, ImportError) as error:
                text = str(error) if _is_backend_error(error) else what_to_install(error)
                if text is None:
                    raise
                print(f"{prog(command)}: error: {text}", file=sys.stderr)
                return 2
            cli = importlib.import_module(f"iaat_fast.{command}.cli")
        return int(cli.main(sys.argv[1:]))
    except SystemExit as stop:  # of --help, and of signals
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return int(getattr(stop, "status", 130))


@contextlib.contextmanager
def _stopped_at_once(said: str) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process, unless they are ignored.

    Where modules are imported an exception is no way out: some catch it, and fail later of what they lack.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(signum)
            if callable(handler):
                before[signum] = handler
                signal.signal(signum, functools.partial(_stop, said))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stop(said: str, signum: int, frame: FrameType | None) -> NoReturn:
    if said:
        with contextlib.suppress(OSError):
            os.write(2, f"{said}\n".encode())
    os._exit(128 + signum)


_stop_early = functools.partial(_stop, "interrupted")
"""The handler of Ctrl-C until `start` runs."""


def _is_there(module: str) -> bool:
    """Whether a module can be imported, as far as can be told without importing it."""
    return importlib.util.find_spec(module) is not None


def _is_backend_error(error: BaseException) -> bool:
    return str(error).startswith("IAAT_FAST_BACKEND")
