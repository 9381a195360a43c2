"""`python -m iaat_fast.evaluate`, whose suite "cifar" has attacks of fewer steps: shared trajectories all the same."""

from __future__ import annotations

import dataclasses
import runpy

from iaat_fast.evaluate.suites import SUITES, Suite


def shorter(*attacks: tuple[int, int]) -> Suite:
    """The suite "cifar" with these attacks, in (steps, restarts)."""
    return dataclasses.replace(SUITES["cifar"], attacks=attacks)


# Long enough to be interrupted thrice.
INTERRUPTED = shorter((10, 5), (50, 5), (250, 2))

if __name__ == "__main__":
    SUITES["cifar"] = INTERRUPTED
    runpy.run_module("iaat_fast.evaluate", run_name="__main__", alter_sys=True)
