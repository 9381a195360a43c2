"""`python -m iaat_fast.plan`: see `iaat_fast.plan.cli`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from iaat_fast.plan.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted, nothing was written", file=sys.stderr)
        status = 130
    sys.exit(status)
