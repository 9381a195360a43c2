"""Around every `python -m iaat_fast.COMMAND`: errors before it has started, its exit status, pipes closed on it.

Kept apart from command_line.py, because it runs before torch and tyro, which take seconds, are imported.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
from types import TracebackType
from typing import NoReturn

OUTPUTS = (1, 2)
"""File descriptors of standard output and error."""


def explain_early_errors() -> None:
    """Until `start`, say in one line what goes wrong: a package imports torch before its __main__ runs."""

    def explain(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        elif _is_of_backends(error):
            print(f"iaat_fast: error: {error}", file=sys.stderr, flush=True)
            os._exit(2)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = explain


def start(command: str, *, interrupted: str) -> NoReturn:
    """Run `iaat_fast.<command>.cli.main` on this process's arguments, and exit with its status.

    Ctrl-C is one line, also while torch is imported, which takes seconds; so is an IAAT_FAST_BACKEND that is not
    available. Where the reader of the output has gone (`| head`) the exit is silent, with status 1 as Python's own.

    Args:
        command: name of the package.
        interrupted: what to say at a KeyboardInterrupt that the command leaves to us; "" for nothing.
    """
    sys.excepthook = sys.__excepthook__
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
    sys.exit(status)


def output_is_gone() -> bool:
    """Whether nothing reads this process's standard output or error any more."""
    outputs = select.poll()
    for descriptor in OUTPUTS:
        outputs.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in outputs.poll(0))


def _run(command: str, interrupted: str) -> int:
    try:
        try:
            importlib.import_module("iaat_fast.ops")
        except (ValueError, ImportError) as error:
            if not _is_of_backends(error):
                raise
            print(f"python -m iaat_fast.{command}: error: {error}", file=sys.stderr)
            return 2
        return int(importlib.import_module(f"iaat_fast.{command}.cli").main(sys.argv[1:]))
    except SystemExit as stop:  # of --help, and of signals
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return int(getattr(stop, "status", 130))


def _is_of_backends(error: BaseException) -> bool:
    return str(error).startswith("IAAT_FAST_BACKEND")
