"""`python -m iaat_fast.train`: see `iaat_fast.train.cli`."""

from __future__ import annotations

import os
import sys

from iaat_fast.train.stopping import raise_on_sigterm

if __name__ == "__main__":
    raise_on_sigterm()
    try:
        # Imported here: torch takes seconds, and an interrupt meanwhile shall end in one line, too.
        from iaat_fast.train.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted before the first step of training", file=sys.stderr)
        status = getattr(stop, "status", 130)
    sys.exit(status)
