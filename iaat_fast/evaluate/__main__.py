"""`python -m iaat_fast.evaluate`: see `iaat_fast.evaluate.cli`."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from iaat_fast.entry import start


def _stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    start("evaluate", interrupted="interrupted, nothing was written")
