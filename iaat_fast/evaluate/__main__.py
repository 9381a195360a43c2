"""`python -m iaat_fast.evaluate`: see `iaat_fast.evaluate.cli`."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def _stop(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    try:
        signal.signal(signal.SIGTERM, _stop)
        from iaat_fast.evaluate.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted, nothing was written", file=sys.stderr)
        status = 130
    sys.exit(status)
