"""`python -m iaat_fast.train`: see `iaat_fast.train.cli`."""

from __future__ import annotations

import os

from iaat_fast.entry import start
from iaat_fast.train.signals import raise_on_sigterm

if __name__ == "__main__":
    raise_on_sigterm()
    first = os.environ.get("RANK", "0") == "0"
    start("train", interrupted="interrupted before the first step of training" if first else "")
