"""`python -m iaat_fast.sweep`: see `iaat_fast.sweep.cli`."""

from __future__ import annotations

from iaat_fast.entry import start
from iaat_fast.train.signals import raise_on_sigterm

if __name__ == "__main__":
    raise_on_sigterm()
    start("sweep", interrupted="interrupted before any job was started")
