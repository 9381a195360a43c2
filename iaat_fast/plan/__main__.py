"""`python -m iaat_fast.plan`: see `iaat_fast.plan.cli`."""

from __future__ import annotations

from iaat_fast.entry import start

if __name__ == "__main__":
    start("plan", interrupted="interrupted, nothing was written")
