"""Setting up a run before its first step, in the order of `fit`: its folder, images and network, then its state."""

from __future__ import annotations

import logging
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import iaat_fast
from iaat_fast import data as datasets
from iaat_fast import models
from iaat_fast.attacks.model import attacked
from iaat_fast.data import FolderSplit, ImageData, Samples
from iaat_fast.evaluate import check_model
from iaat_fast.run_folder import CUSTOM, RunFolder
from iaat_fast.storage import check_folder, content_hash
from iaat_fast.train.checkpoint import TrainState
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.cudagraph_step import capture_for
from iaat_fast.train.distributed import SINGLE, Ranks
from iaat_fast.train.optim import make_average, make_optimizer
from iaat_fast.train.overrides import adopt, differences, override
from iaat_fast.train.step import TrainingStep, make_memory, to_sync_batchnorm

logger = logging.getLogger("iaat_fast")

_MAX_HASHED = 2**30
"""Elements of a split's tensor; of a larger tensor only every k-th row is hashed. A GiB takes about a second."""


def check_configurations(ranks: Ranks, config: TrainConfig) -> None:
    """Raise ValueError, on every rank, if a rank's configuration is not that of the first rank.

    Fields that may change when a run is resumed (`overrides.FREE`) may differ.
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
            f"optim.batch_size: {batch}, expected at least {ranks.count * accumulate}, an image for each micro-batch "
            f"({accumulate}) of each rank ({ranks.count})"
        )


def open_run(
    config: TrainConfig, ranks: Ranks, *, resume: bool, overwrite: bool
) -> tuple[RunFolder, bool]:
    """`open_folder`, by the first rank for all of them.

    A run that torchrun has restarted is resumed, whatever `resume` and `overwrite` are.
    """

    def opened() -> tuple[RunFolder, bool]:
        if _restarted(config, ranks):
            return open_folder(config, resume=True, overwrite=False)
        folder, resuming = open_folder(config, resume=resume, overwrite=overwrite)
        check_folder("run.out", folder.path)
        return folder, resuming

    return ranks.run_on_first(opened)


def open_folder(config: TrainConfig, *, resume: bool, overwrite: bool) -> tuple[RunFolder, bool]:
    """The run folder of `config`, and whether the run there is resumed (True) or a new one starts (False).

    Nothing is written or removed yet.

    Raises:
        FileExistsError: the folder holds a run and neither `resume` nor `overwrite` is set, or it
            holds something that is no run.
        ValueError: both are set; `resume` is set without a folder; or the run there has another
            configuration: the message names the fields and both values. (More epochs are allowed,
            they extend the run.)
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if config.run.out is None:
        if resume:
            raise ValueError("--resume needs the run folder: --out DIR")
        return RunFolder(_new_path(config)), False
    folder = RunFolder(config.run.out)
    if folder.is_free:
        return folder, False
    if not folder.is_run:
        raise FileExistsError(f"{folder.path}: exists and is no run folder (no config.json in it)")
    if resume:
        recorded = recorded_config(folder)
        changed = differences(recorded, _cap_epochs(adopt(config, recorded), recorded))
        if changed:
            raise ValueError(
                f"{folder.path}: holds a run with another configuration: {', '.join(changed)}"
            )
        return folder, True
    if overwrite:
        return folder, False
    raise FileExistsError(
        f"{folder.path}: holds a run already; --resume continues it, --overwrite replaces it"
    )


def recorded_config(folder: RunFolder) -> TrainConfig:
    """The configuration in a run folder, with the folder itself as `run.out`.

    Raises:
        ValueError: config.json is damaged or holds fields this version does not know.
    """
    try:
        config = override(TrainConfig(), folder.config())
        return override(config, {"run": {"out": str(folder.path)}})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.config_path}: {error}") from error


def _restarted(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether torchrun has restarted this run.

    Raises:
        ValueError: torchrun may restart it, and the configuration names no folder to find the run in.
    """
    if config.run.out is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise ValueError(
            "torchrun --max-restarts needs the run folder, to continue there: --out DIR"
        )
    return ranks.restarts > 0 and config.run.out is not None and RunFolder(config.run.out).is_run


def _cap_epochs(config: TrainConfig, recorded: TrainConfig) -> TrainConfig:
    """`config` with at most the epochs recorded, so that more epochs are no difference: they extend the run.

    Not with a learning rate that falls to 0 over the epochs planned, which would have been another one from the start.
    """
    if recorded.optim.lr_schedule != "step":
        return config
    epochs = min(config.optim.epochs, recorded.optim.epochs)
    return override(config, {"optim": {"epochs": epochs}})


def _new_path(config: TrainConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.preset}-{config.method}-{stamp}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def make_parts(
    config: TrainConfig,
    data: ImageData | tuple[Any, Any] | None,
    model: nn.Module | None,
    device: torch.device,
) -> tuple[ImageData, nn.Module]:
    """Images and network on `device`: those given, else those of the configuration.

    Raises:
        TypeError, ValueError: they cannot be loaded or built, or do not fit each other.
    """
    if data is None:
        data = _load_data(config)
    elif not isinstance(data, ImageData):
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise TypeError(
                f"data: {type(data).__name__}, expected an ImageData or (train, test), each (x, y), a Dataset or a "
                "DataLoader"
            )
        data = datasets.as_image_data(*data, name=CUSTOM)
    data = data.to(device)
    if model is None:
        model = build_model(
            config, data.name, num_classes=data.num_classes, in_channels=data.train.channels
        )
    model = model.to(device)
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


def build_model(
    config: TrainConfig, dataset: str, *, num_classes: int, in_channels: int
) -> nn.Module:
    """The network of a configuration, for the images of a data set.

    Raises:
        ValueError: the run's network was passed to `fit` from Python.
    """
    part = config.model
    if part.name == CUSTOM:
        raise ValueError("the model of this run came from Python: pass it again, fit(model=...)")
    return models.build_for(
        dataset,
        part.name,
        num_classes=num_classes,
        in_channels=in_channels,
        width=part.width,
        depth=part.depth,
    )


def check_start(ranks: Ranks, data: ImageData, model: nn.Module, device: torch.device) -> None:
    """Raise ValueError, on every rank, naming ranks whose data, weights, device or versions are not the first's."""
    if ranks.count == 1:
        return
    own = {
        "data": content_hash([_samples(data.train), _samples(data.test), data.num_classes]),
        "weights": content_hash(model.state_dict()),
        "device": device.type,
        "version": f"iaat_fast {iaat_fast.__version__} with torch {torch.__version__}",
    }
    first, *others = ranks.gather(own)
    for what, expected in first.items():
        differing = [rank for rank, found in enumerate(others, 1) if found[what] != expected]
        if differing:
            names = ", ".join(map(str, differing))
            values = "" if what in ("data", "weights") else f" ({expected} there)"
            raise ValueError(
                f"rank{'s' * (len(differing) > 1)} {names}: not the same {what} as on rank 0{values}"
            )


def _samples(split: Samples) -> list[Any]:
    """What of a split is hashed: names, shapes and values of its tensors."""
    return [
        [name, list(values.shape), values[:: -(-values.numel() // _MAX_HASHED)]]
        for name, values in split.identity()
    ]


def make_state(
    config: TrainConfig,
    model: nn.Module,
    data: ImageData,
    device: torch.device,
    ranks: Ranks = SINGLE,
) -> TrainState:
    """The state before the first step, of a model and data on their device.

    Raises:
        ValueError: SyncBatchNorm on a CPU, or with batches too small for it; or a batch of one image, on which the
            model cannot train because of its BatchNorm.
    """
    optim = config.optim
    _check_smallest_batch(config, model, data, ranks)
    if optim.sync_batchnorm and ranks.count > 1:
        _check_synchronised(config, len(data.train), device, ranks)
        model = to_sync_batchnorm(model)
    # Independent of optim.graph, which changes how a step is launched and must not change its rounding.
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
    """Refuse a model that cannot train on one image, if a step may have only one.

    BatchNorm after a linear layer has no statistics of one image; after a convolution it has those over the positions.
    So the model itself is tried.
    """
    optim, size = config.optim, len(data.train)
    whole = [min(size, optim.batch_size), size % optim.batch_size]
    shards = [max(1, images // ranks.count) for images in whole if images]
    smallest = min(max(1, images // optim.accumulate) for images in shards)
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
        named = [f"optim.accumulate {optim.accumulate}"] * (optim.accumulate > 1)
        named += [f"ranks {ranks.count}"] * (ranks.count > 1)
        named += ["data.on_bad_image 'skip'"] * skips
        others = f" with {', '.join(named)}" if named else ""
        raise ValueError(
            f"optim.batch_size: {optim.batch_size}{others}, expected at least 2 images in every batch, but {size} "
            f"training images may leave 1, on which this model does not train ({error})"
        ) from error


def _check_synchronised(config: TrainConfig, size: int, device: torch.device, ranks: Ranks) -> None:
    """Refuse SyncBatchNorm where ranks may take different numbers of forwards: each waits for all other ranks."""
    optim = config.optim
    last, least = size % optim.batch_size or optim.batch_size, ranks.count * optim.accumulate
    if last < least:
        raise ValueError(
            f"optim.sync_batchnorm: on, expected at least {least} images in the last batch of an epoch, one for each "
            f"micro-batch ({optim.accumulate}) of each rank ({ranks.count}), not {last}; change optim.batch_size, "
            f"{optim.batch_size}"
        )
    if config.data.on_bad_image == "skip":
        raise ValueError(
            "optim.sync_batchnorm: on, expected data.on_bad_image 'stop', not 'skip', which may leave a rank too few "
            "images"
        )
    if device.type == "cpu":
        raise ValueError("optim.sync_batchnorm: on, expected a GPU, for which alone torch has it")


def restore(
    config: TrainConfig, folder: RunFolder, state: TrainState, env: dict[str, Any], ranks: Ranks
) -> None:
    """Set `state` and the files of the run back to the last checkpoint, or to the start if there is none.

    With more epochs than before, the files become those of a run that has not ended. Only the first rank reads and
    writes.

    Raises:
        ValueError: every checkpoint is damaged, or it is of another configuration, model or data set.
    """
    found = ranks.run_on_first(folder.last_good_checkpoint)
    if found is not None:
        checkpoint, path, damage = found
        _check_same_run(checkpoint, path, config)
        state.load_checkpoint(checkpoint, path)
        if damage is not None and ranks.first:
            logger.warning("%s; continuing from %s, step %d", damage, path.name, state.step)

    def files() -> None:
        folder.remove_temporary()
        if config.optim.epochs > recorded_config(folder).optim.epochs:
            folder.extend(config.optim.epochs)
        folder.cut_metrics(state.step)
        folder.add_resumption(env, step=state.step)

    ranks.run_on_first(files)


def _check_same_run(checkpoint: dict[str, Any], path: Path, config: TrainConfig) -> None:
    try:
        saved = override(TrainConfig(), checkpoint["config"])
        changed = differences(saved, _cap_epochs(config, saved))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: its configuration is not of this version: {error}") from error
    if changed:
        raise ValueError(f"{path}: a checkpoint of another configuration: {', '.join(changed)}")
