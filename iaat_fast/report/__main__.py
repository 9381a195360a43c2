"""`python -m iaat_fast.report`: see `iaat_fast.report.cli`."""

from __future__ import annotations

from iaat_fast.entry import start

if __name__ == "__main__":
    start("report", interrupted="interrupted")
