"""The parts of a run from its configuration: images, network, and the state before the first step."""

from __future__ import annotations

import math

import torch
from torch import nn

from iaat_fast import data as datasets
from iaat_fast import models
from iaat_fast.attacks.model import attacked
from iaat_fast.data import FolderSplit, ImageData
from iaat_fast.evaluate import check_model
from iaat_fast.train.averaging import make_average
from iaat_fast.train.capture import capture_for
from iaat_fast.train.config import CUSTOM, TrainConfig
from iaat_fast.train.optimizer import make_optimizer
from iaat_fast.train.ranks import ALONE, Ranks
from iaat_fast.train.state import TrainState
from iaat_fast.train.step import TrainingStep, make_memory
from iaat_fast.train.update import spread_batch_norm


def make_parts(
    config: TrainConfig, data: ImageData | None, model: nn.Module | None, device: torch.device
) -> tuple[ImageData, nn.Module]:
    """Images and network on their device: those given, else those of the configuration.

    Raises:
        ValueError: they cannot be made, or do not fit each other.
    """
    data = (_load_data(config) if data is None else data).to(device)
    model = (_build_model(config, data) if model is None else model).to(device)
    check_model(model, data.train, data.test)
    return data, model


def _load_data(config: TrainConfig) -> ImageData:
    if config.data.name == CUSTOM:
        raise ValueError("the images of this run came from Python: pass them again, fit(data=...)")
    part = config.data
    return datasets.load(
        part.name,
        part.path,
        limit=part.limit,
        workers=part.workers,
        on_bad_image=part.on_bad_image,
    )


def _build_model(config: TrainConfig, data: ImageData) -> nn.Module:
    part = config.model
    if part.name == CUSTOM:
        raise ValueError("the model of this run came from Python: pass it again, fit(model=...)")
    return models.build_for(
        data.name,
        part.name,
        num_classes=data.num_classes,
        in_channels=data.train.channels,
        width=part.width,
        depth=part.depth,
    )


def make_state(
    config: TrainConfig,
    model: nn.Module,
    data: ImageData,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> TrainState:
    """The state before the first step, of a model and data on their device.

    Raises:
        ValueError: SyncBatchNorm on a CPU, or with batches too small for it; or a batch of one image, which the model's
            BatchNorm has no statistics of.
    """
    optim = config.optim
    _check_smallest_batch(config, model, data, ranks)
    if optim.sync_batchnorm and ranks.count > 1:
        _check_synchronised(config, len(data.train), device, ranks)
        model = spread_batch_norm(model)
    # The switch (optim.graph) is not asked: it changes how a step is launched, and no rounding.
    on_device = capture_for(device) is not None and optim.amp != "fp16"
    optimizer = make_optimizer(model, optim, on_device=on_device)
    memory = make_memory(config, len(data.train), device)
    average = make_average(model, optim.ema_decay)
    return TrainState(
        model=model,
        memory=memory,
        optimizer=optimizer,
        average=average,
        training_step=TrainingStep(
            config, model, memory, optimizer, device, average=average, ranks=ranks
        ),
        device=device,
        steps_per_epoch=math.ceil(len(data.train) / optim.batch_size),
    )


def _check_smallest_batch(
    config: TrainConfig, model: nn.Module, data: ImageData, ranks: Ranks
) -> None:
    """Where a step may be left one image, the model must train on one: BatchNorm over features has no statistics of it.

    Convolutions leave several positions of an image, which do have them, so that the model is asked.
    """
    optim, size = config.optim, len(data.train)
    whole = [min(size, optim.batch_size), size % optim.batch_size]
    slices = [max(1, images // ranks.count) for images in whole if images]
    smallest = min(max(1, images // optim.accumulate) for images in slices)
    skips = isinstance(data.train, FolderSplit) and config.data.on_bad_image == "skip"
    if smallest > 1 and not skips:
        return
    x, _ = datasets.fetch(
        data.train, torch.zeros(1, dtype=torch.int64, device=data.train.labels.device)
    )
    try:
        with attacked(model, "train"), torch.no_grad():
            model(x)
    except (RuntimeError, ValueError) as error:
        named = [f"optim.batch_size is {optim.batch_size}"]
        named += [f"optim.accumulate {optim.accumulate}"] * (optim.accumulate > 1)
        named += [f"ranks {ranks.count}"] * (ranks.count > 1)
        named += ["data.on_bad_image 'skip'"] * skips
        raise ValueError(
            f"{', '.join(named)}: expected at least 2 images in every batch, but {size} training images may leave 1, "
            f"on which this model does not train ({error})"
        ) from error


def _check_synchronised(config: TrainConfig, size: int, device: torch.device, ranks: Ranks) -> None:
    """Every forward of every rank waits for the others': none may have fewer of them."""
    optim = config.optim
    last, least = size % optim.batch_size or optim.batch_size, ranks.count * optim.accumulate
    if last < least:
        raise ValueError(
            f"optim.sync_batchnorm is on: expected at least {least} images in the last batch of an epoch, one for each "
            f"micro-batch ({optim.accumulate}) of each rank ({ranks.count}), not {last}; change optim.batch_size, "
            f"{optim.batch_size}"
        )
    if config.data.on_bad_image == "skip":
        raise ValueError(
            "optim.sync_batchnorm is on: expected data.on_bad_image 'stop', not 'skip', which may leave a rank too few "
            "images"
        )
    if device.type == "cpu":
        raise ValueError("optim.sync_batchnorm is on: torch has it for GPUs only")
