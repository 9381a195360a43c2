"""The training loop, from a configuration to a finished run folder: `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast import data as datasets
from iaat_fast import models, ops
from iaat_fast.data import ImageData
from iaat_fast.environment import describe, resolve_device
from iaat_fast.evaluate import accuracy, check_model
from iaat_fast.run_folder import RunFolder
from iaat_fast.train.averaging import make_average
from iaat_fast.train.board import Board
from iaat_fast.train.config import CUSTOM, OptimConfig, TrainConfig, override
from iaat_fast.train.opening import open_folder
from iaat_fast.train.progress import Progress
from iaat_fast.train.seeds import Stream, step_seed
from iaat_fast.train.state import TrainState
from iaat_fast.train.step import TrainingStep, make_memory
from iaat_fast.train.stopping import Interrupted, StopSignals


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A finished run.

    `epsilon` is the radius of every training sample, float32 [size] on the [0, 1] scale, on the
    CPU; `metrics` are the rows of metrics.jsonl (see `RunFolder.append_metrics`). `evaluated` is the
    network whose accuracy counts: the average of the weights under `optim.ema_decay`, else `model`.
    """

    folder: RunFolder
    config: TrainConfig
    model: nn.Module
    evaluated: nn.Module
    data: ImageData
    epsilon: Tensor
    metrics: list[dict[str, Any]]


def fit(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train as `config` says, into a run folder.

    The first Ctrl-C or SIGTERM finishes the step under way, saves a checkpoint and raises
    `Interrupted` (a KeyboardInterrupt); a second ends the process at once. On the CPU a run that
    was killed and resumed ends with the same bits as one that never was. torch's random state is
    the caller's own again afterwards.

    Args:
        config: from `preset`, for instance `preset("digits", method="iaat")`.
        model: any module from images [N, C, H, W] float32 on [0, 1] to logits [N, classes], in
            place of the configuration's; it is moved to the device and trained in place.
        data: images in place of the configuration's; `config.data.augment` still applies.
        resume: go on with the run in `config.run.out`, which must have this configuration.
        overwrite: replace the run in `config.run.out`.
        on_epoch: called with each epoch's row of metrics.jsonl.
        quiet: show nothing.

    Raises:
        FileExistsError: the run folder exists and neither `resume` nor `overwrite` is set.
        ValueError: bad configuration, device, data or checkpoint; the message names it.
        FloatingPointError: the loss is not finite; the last good checkpoint is still there.
        OSError: a file could not be written; the last good checkpoint is still there.
        Interrupted: see above.
    """
    if model is not None:
        config = override(config, {"model": {"name": CUSTOM, "width": None, "depth": None}})
    if data is not None:
        config = override(config, {"data": {"name": CUSTOM, "path": None, "limit": None}})
    device = resolve_device(config.run.device)
    folder, going_on = open_folder(config, resume=resume, overwrite=overwrite)
    config = override(config, {"run": {"out": str(folder.path)}})
    cuda = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(config.run.seed)
        data = (_load_data(config) if data is None else data).to(device)
        model = (_build_model(config, data) if model is None else model).to(device)
        check_model(model, data.train, data.test)
        state = _make_state(config, model, data, device)
        if going_on:
            _go_on(folder, state, describe(device))
        else:
            folder.create(config.to_dict(), describe(device))
        _Run(config, folder, state, data, on_epoch, quiet).train()
    return FitResult(
        folder=folder,
        config=config,
        model=model,
        evaluated=state.evaluated,
        data=data,
        epsilon=state.memory.values.detach().cpu(),
        metrics=folder.metrics(),
    )


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """The learning rate of the epoch with this index (from 0): step decay."""
    return config.lr * config.decay_factor ** sum(epoch >= start for start in config.decay_epochs)


def _load_data(config: TrainConfig) -> ImageData:
    if config.data.name == CUSTOM:
        raise ValueError("the images of this run came from Python: pass them again, fit(data=...)")
    return datasets.load(config.data.name, config.data.path, limit=config.data.limit)


def _build_model(config: TrainConfig, data: ImageData) -> nn.Module:
    part = config.model
    if part.name == CUSTOM:
        raise ValueError("the model of this run came from Python: pass it again, fit(model=...)")
    return models.build_for(
        data.name,
        part.name,
        num_classes=data.num_classes,
        in_channels=data.train.images.shape[3],
        width=part.width,
        depth=part.depth,
    )


def _make_state(
    config: TrainConfig, model: nn.Module, data: ImageData, device: torch.device
) -> TrainState:
    optim = config.optim
    optimizer = torch.optim.SGD(
        model.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    memory = make_memory(config, len(data.train), device)
    average = make_average(model, optim.ema_decay)
    return TrainState(
        model=model,
        memory=memory,
        optimizer=optimizer,
        average=average,
        training_step=TrainingStep(config, model, memory, optimizer, device, average=average),
        device=device,
        steps_per_epoch=math.ceil(len(data.train) / optim.batch_size),
    )


def _go_on(folder: RunFolder, state: TrainState, env: dict[str, Any]) -> None:
    """Bring `state` and the files of the run to the last checkpoint, or to the start if none."""
    folder.remove_temporary()
    if folder.checkpoint_path.is_file():
        state.load_checkpoint(folder.checkpoint(), folder.checkpoint_path)
    folder.cut_metrics(state.step)
    folder.add_resumption(env, step=state.step)


class _Run:
    """The loop over epochs and steps, and what surrounds a step."""

    # How often a GPU is asked for the loss: each time the host waits for it. A CPU never waits.
    READ_EVERY_ON_GPU = 25

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        state: TrainState,
        data: ImageData,
        on_epoch: Callable[[dict[str, Any]], None] | None,
        quiet: bool,
    ) -> None:
        self.config = config
        self.folder = folder
        self.state = state
        self.data = data
        self.on_epoch = on_epoch
        self.quiet = quiet
        self.total_steps = config.optim.epochs * state.steps_per_epoch
        self.read_every = 1 if state.device.type == "cpu" else self.READ_EVERY_ON_GPU
        self.images = data.train.images.contiguous()  # as the op that augments wants them

    def train(self) -> None:
        state, config = self.state, self.config
        self.board = Board(
            self.folder.tensorboard_dir, enabled=config.run.tensorboard, after=state.step
        )
        self.progress = Progress(
            steps=self.total_steps, done=state.step, epochs=config.optim.epochs, quiet=self.quiet
        )
        self.progress.start(
            f"training {config.method} on {len(self.data.train)} images of {config.data.name}, "
            f"preset {config.preset}, protocol {config.protocol}, on {state.device}, "
            f"step {state.step} of {self.total_steps}; run folder {self.folder.path}"
        )
        try:
            with StopSignals() as signals:
                while state.step < self.total_steps:
                    self._train_epoch(signals)
        finally:
            self.progress.close()
            self.board.close()

    def _train_epoch(self, signals: StopSignals) -> None:
        state, config = self.state, self.config
        epoch, size = state.epoch, len(self.data.train)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, epoch)
        order = datasets.epoch_order(size, seed=config.run.seed, epoch=epoch).to(state.device)
        started = time.perf_counter() - state.seconds
        batches = order.split(config.optim.batch_size)
        for position in range(state.step - epoch * state.steps_per_epoch, len(batches)):
            self._train_step(batches[position], epoch)
            state.seconds = time.perf_counter() - started
            if position == len(batches) - 1:
                self._end_epoch(epoch)
            elif signals.received is not None or self._due():
                self._save()
            if signals.received is not None:
                raise Interrupted(
                    f"stopped after step {state.step} of {self.total_steps}, checkpoint saved; "
                    f"resume with python -m iaat_fast.train --resume --out {self.folder.path}",
                    signals.received,
                )

    def _due(self) -> bool:
        every = self.config.run.checkpoint_steps
        return every > 0 and self.state.step % every == 0

    def _train_step(self, index: Tensor, epoch: int) -> None:
        state, seed = self.state, self.config.run.seed
        if self.config.data.augment:
            x = ops.random_crop_flip(
                self.images, index, step_seed(seed, state.step, Stream.AUGMENT)
            )
            y = self.data.train.labels[index]
        else:
            x, y = datasets.fetch(self.data.train, index)
        attack_seed = step_seed(seed, state.step, Stream.ATTACK)
        state.training_step(x, y, index, epoch=epoch, seed=attack_seed)
        state.step += 1
        self.progress.step(epoch)
        if state.step % self.read_every == 0:
            eps = state.memory.values.mean().item()
            self.progress.values(loss=self._mean_loss(), eps=eps)

    def _seen(self) -> int:
        """Samples the totals of the epoch under way are over."""
        within = self.state.step % self.state.steps_per_epoch
        size = len(self.data.train)
        return within * self.config.optim.batch_size if within else size

    def _mean_loss(self) -> float:
        """The mean loss of the epoch so far, which must be finite."""
        loss = float(self.state.training_step.totals[0]) / self._seen()
        if not math.isfinite(loss):
            path = self.folder.checkpoint_path
            kept = f"the last good checkpoint is {path}" if path.is_file() else "none saved yet"
            raise FloatingPointError(
                f"the loss is {loss} at step {self.state.step} (epoch {self.state.epoch + 1}): "
                f"training diverged, try a smaller learning rate; {kept}"
            )
        return loss

    def _save(self) -> None:
        self._mean_loss()
        self.folder.save_checkpoint(self.state.to_checkpoint(self.config.to_dict()))

    def _end_epoch(self, epoch: int) -> None:
        state, config = self.state, self.config
        row = self._row(epoch)
        eps = state.memory.values
        last = row["epoch"] == config.optim.epochs
        adaptive = state.training_step.method.radii == "adaptive"
        if adaptive and (last or row["epoch"] % config.run.snapshot_epochs == 0):
            self.folder.save_epsilon(row["epoch"], eps)
        self.folder.append_metrics(row)
        self.board.epoch(row, eps)
        state.training_step.totals.zero_()
        state.seconds = 0.0
        # Last: a run killed before this line repeats the epoch's end and writes the same again.
        self.folder.save_checkpoint(state.to_checkpoint(config.to_dict()))
        self.progress.epoch(row)
        if self.on_epoch is not None:
            self.on_epoch(row)

    def _row(self, epoch: int) -> dict[str, Any]:
        state, config, method = self.state, self.config, self.state.training_step.method
        loss, size = self._mean_loss(), len(self.data.train)
        _, clean, robust = state.training_step.totals.tolist()
        eps = state.memory.values
        return {
            "epoch": epoch + 1,
            "step": state.step,
            "lr": learning_rate(config.optim, epoch),
            "train_loss": loss,
            "train_clean_accuracy": clean / size if method.counts_clean else None,
            "train_robust_accuracy": robust / size if method.counts_robust else None,
            "eps_mean": eps.mean().item(),
            "eps_std": eps.std(correction=0).item(),
            "eps_min": eps.min().item(),
            "eps_max": eps.max().item(),
            "test_accuracy": accuracy(
                state.evaluated, self.data.test, batch_size=config.evaluation.batch_size
            ),
            "seconds": round(state.seconds, 3),
        }
