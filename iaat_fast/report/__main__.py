"""`python -m iaat_fast.report`: see `iaat_fast.report.cli`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from iaat_fast.report.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
