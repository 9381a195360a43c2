"""Ctrl-C and SIGTERM during training: finish the step, save a checkpoint, say how to resume."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; if it was training, a checkpoint has been saved.

    Attributes:
        status: the exit status of the command: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


def raise_on_sigterm() -> None:
    """From now on raise Interrupted at SIGTERM, as Python raises KeyboardInterrupt at Ctrl-C."""

    def handle(signum: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated", signum)

    signal.signal(signal.SIGTERM, handle)


class StopSignals:
    """Inside this context, the first SIGINT or SIGTERM only sets `received`; a second ends the process at once.

    If SIGINT is ignored it stays so, as Python itself leaves it: a shell without job control starts `command &` like
    that, because Ctrl-C is meant for what runs in the foreground. SIGTERM then stops the run. Outside the main thread
    Python allows no handlers, and signals stay as they were.

    Args:
        patient: ignore a second signal. For several ranks, which get more than one: a scheduler may signal torchrun
            and its ranks, and torchrun passes its own signal on. It kills ranks that take more than 30 s.
        answer: a line to print on standard error at the first signal; None: print nothing.
    """

    def __init__(self, *, patient: bool = False, answer: str | None = None) -> None:
        self._patient = patient
        self._answer = answer
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [signal.SIGTERM]
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                heeded.append(signal.SIGINT)
            for signum in heeded:
                self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and not self._patient:
            # No clean-up: a checkpoint is replaced atomically, so the last good one is whole.
            os._exit(128 + signum)
        if self.received is None and self._answer is not None:
            # Past Python's buffers, in which the signal may have come; a terminal's line is cleared of a bar first.
            clear = "\r\x1b[K" if os.isatty(2) else ""
            with contextlib.suppress(OSError):
                os.write(2, f"{clear}{self._answer}\n".encode())
        self.received = self.received or signum
