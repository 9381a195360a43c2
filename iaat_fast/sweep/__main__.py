"""`python -m iaat_fast.sweep`: see `iaat_fast.sweep.cli`."""

from __future__ import annotations

import sys

from iaat_fast.train.stopping import raise_on_sigterm

if __name__ == "__main__":
    raise_on_sigterm()
    try:
        # Imported here: torch takes seconds, and an interrupt meanwhile shall end in one line, too.
        from iaat_fast.sweep.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt as stop:
        print("interrupted before any job was started", file=sys.stderr)
        status = getattr(stop, "status", 130)
    sys.exit(status)
