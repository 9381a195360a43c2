"""The logs of jobs: their heads, and their last lines."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path


def begin(log: Path, command: Sequence[str]) -> None:
    """Head a job's part of its log with the time and the command."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n")


def failure(log: Path, status: int) -> str:
    """The last line that a failed job printed, and how it ended if it printed none."""
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    line = last_line(log)
    return how if not line or line.startswith("# ") else f"{line} ({how})"


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; "" where there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
