"""What has to be the same on all ranks before the first step: configuration, data, weights, versions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import iaat_fast
from iaat_fast.data import ImageData, Samples
from iaat_fast.digest import digest
from iaat_fast.train.changes import differences, override
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.ranks import Ranks

_BYTES = 2**30
"""Of larger ones every k-th image is compared: hashing takes about a second a GiB."""


def check_configurations(ranks: Ranks, config: TrainConfig) -> None:
    """Raise ValueError, on every rank, where a rank's configuration is not the first one's.

    What may change when a run is resumed may differ, the run folder included.
    """
    if ranks.count == 1:
        return
    first, *others = (override(TrainConfig(), plain) for plain in ranks.gather(config.to_dict()))
    for rank, other in enumerate(others, start=1):
        changed = differences(first, other, there=" on rank 0", given=f" on rank {rank}")
        if changed:
            raise ValueError(f"the ranks have different configurations: {', '.join(changed)}")
    batch, accumulate = config.optim.batch_size, config.optim.accumulate
    if batch < ranks.count * accumulate:
        raise ValueError(
            f"optim.batch_size is {batch}: expected at least {ranks.count * accumulate}, an image for each micro-batch "
            f"({accumulate}) of each rank ({ranks.count})"
        )


def check_start(ranks: Ranks, data: ImageData, model: nn.Module, device: torch.device) -> None:
    """Raise ValueError, on every rank, naming the ranks that would not start as the first one does."""
    if ranks.count == 1:
        return
    mine = {
        "data": digest([_samples(data.train), _samples(data.test), data.num_classes]),
        "weights": digest(model.state_dict()),
        "device": device.type,
        "version": f"iaat_fast {iaat_fast.__version__} with torch {torch.__version__}",
    }
    first, *others = ranks.gather(mine)
    for what, expected in first.items():
        differing = [rank for rank, found in enumerate(others, 1) if found[what] != expected]
        if differing:
            names = ", ".join(map(str, differing))
            values = "" if what in ("data", "weights") else f" ({expected} there)"
            raise ValueError(
                f"rank{'s' * (len(differing) > 1)} {names}: not the same {what} as on rank 0{values}"
            )


def _samples(split: Samples) -> list[Any]:
    return [
        [name, list(values.shape), values[:: -(-values.numel() // _BYTES)]]
        for name, values in split.identity()
    ]
