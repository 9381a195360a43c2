"""A step on one image alone: refused before anything is written where the model's BatchNorm cannot take it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iaat_fast.data import ImageData, Split
from iaat_fast.train import fit
from iaat_fast.train.distributed import Ranks
from iaat_fast.train.setup import _check_smallest_batch


def images(size: int) -> ImageData:
    split = Split(
        torch.arange(size * 36, dtype=torch.uint8).view(size, 6, 6, 1), torch.arange(size) % 3
    )
    return ImageData("tiny", split, Split(split.images[:1], split.labels[:1]), 3)


def over_features() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def over_positions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))


@pytest.mark.parametrize("method", ["clean", "iaat"])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("size", "optim", "said"),
    [
        (7, {"batch_size": 3}, r"^optim.batch_size: 3, .* 7 training images"),
        (1, {"batch_size": 3}, r"^optim.batch_size: 3, .* 1 training images"),
        (2, {"batch_size": 1}, r"^optim.batch_size: 1, .* 2 training images"),
        (6, {"batch_size": 6, "accumulate": 4}, r"^optim.batch_size: 6 with optim.accumulate 4, "),
    ],
)
def test_a_batch_of_one_is_refused_at_the_start(
    method: str, resume: bool, size: int, optim: Any, said: str, tmp_path: Path, tiny_config: Any
) -> None:
    config = tiny_config(tmp_path / "run", method=method, optim=optim)
    with pytest.raises(ValueError, match=rf"{said}.*more than 1 value"):
        fit(config, model=over_features(), data=images(size), resume=resume, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "size"),
    [(over_features, 8), (over_positions, 7)],
)
def test_a_last_batch_that_has_statistics_is_trained_on(
    make: Any, size: int, tmp_path: Path, tiny_config: Any
) -> None:
    """Also where one image has them, in the positions of its features; and the test images may be one."""
    config = tiny_config(tmp_path / "run", optim={"epochs": 1, "batch_size": 3})
    result = fit(config, model=make(), data=images(size), quiet=True)
    assert len(result.metrics) == 1


@pytest.mark.parametrize(("batch", "refused"), [(5, True), (6, False), (9, True)])
def test_the_slices_of_the_ranks_count(batch: int, refused: bool, tiny_config: Any) -> None:
    """Of 12 images, batches of 5 end with 2 for 3 ranks, and those of 9 with 3."""
    model = over_features()
    config, ranks = tiny_config(optim={"batch_size": batch}), Ranks(rank=0, count=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refusal = pytest.raises(
        ValueError, match=f"batch_size: {batch} with ranks 3, exp.*12 training im"
    )
    with refusal if refused else contextlib.nullcontext():
        _check_smallest_batch(config, model, images(12), ranks)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
