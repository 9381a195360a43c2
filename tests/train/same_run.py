"""What tests of whole runs share: how `fit` is called, and two runs compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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


def assert_same_checkpoints(one: RunFolder, other: RunFolder) -> None:
    """Metrics and all that a checkpoint holds, but the switch and the time."""
    assert_same_run(one, other)
    first, second = dict(_leaves(one.checkpoint())), dict(_leaves(other.checkpoint()))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name in ("config.optim.graph", "config.run.out", "seconds"):
            continue
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        place = f"{name}.{key}" if name else str(key)
        if isinstance(inner, (dict, list, tuple)):
            yield from _leaves(inner, place)
        else:
            yield place, inner
