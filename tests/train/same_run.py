"""What tests of whole runs share: how `fit` is called, and two runs compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iaat_fast.run_folder import RunFolder
from iaat_fast.train import FitResult

Fit = Callable[..., FitResult]


def bits(folder: RunFolder) -> dict[str, Tensor]:
    """The weights, buffers and radii of the last checkpoint."""
    state = folder.checkpoint()
    return {**state["model"], "epsilon": state["epsilon"]}


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    first, second = bits(one), bits(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    rows = [[{**row, "seconds": None} for row in run.metrics()] for run in (one, other)]
    assert rows[0] == rows[1]
    assert list(one.epsilon_snapshots()) == list(other.epsilon_snapshots())
