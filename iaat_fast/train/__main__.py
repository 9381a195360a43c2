"""`python -m iaat_fast.train`: see `iaat_fast.train.cli`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from iaat_fast.train.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted before training began", file=sys.stderr)
        status = 130
    sys.exit(status)
