"""The log of a job: what it printed, under a head with the time and the command."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from iaat_fast.storage import naming


class Log:
    """The file that a job's output is appended to, each time the job is started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = 0

    def begin(self, command: Sequence[str]) -> None:
        """Write the head of a start of the job."""
        head = f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n"
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(head)
            self._begun = file.tell()

    def last_line(self) -> str:
        """The last line printed since the job was started; "" where there is none."""
        with open(self.path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(self._begun, end - 4096))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def failure(self, status: int) -> str:
        """The last line that a failed job printed, and how it ended."""
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        line = self.last_line()
        return f"{line} ({how})" if line else how
