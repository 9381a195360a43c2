"""`fit`: the training loop, from a configuration to a finished run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast import data as datasets
from iaat_fast import methods
from iaat_fast.command_line import again
from iaat_fast.data import ImageData
from iaat_fast.environment import describe, resolve_device
from iaat_fast.evaluate.record import rounded
from iaat_fast.malloc import no_malloc_trim
from iaat_fast.run_folder import CUSTOM, RunFolder
from iaat_fast.storage import exclusive_lock
from iaat_fast.train.checkpoint import Checkpointer, TrainState
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.cudagraph_step import CudaGraphStep, capture_for
from iaat_fast.train.dataloader import GlobalBatch, TrainLoader
from iaat_fast.train.distributed import Ranks, joined
from iaat_fast.train.hardware import in_words, resolved
from iaat_fast.train.metrics import NonFiniteGuard, Progress, TensorBoardLogger, radius_statistics
from iaat_fast.train.optim import learning_rate, never_reached, set_rate
from iaat_fast.train.overrides import adopt, override
from iaat_fast.train.seeds import Stream, step_seed
from iaat_fast.train.setup import (
    check_configurations,
    check_start,
    make_parts,
    make_state,
    open_run,
    recorded_config,
    restore,
)
from iaat_fast.train.signals import Interrupted, StopSignals
from iaat_fast.train.validation import shared_accuracy

logger = logging.getLogger("iaat_fast")


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
    data: ImageData | tuple[Any, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train as `config` says, into a run folder.

    The first Ctrl-C or SIGTERM finishes the current step, saves a checkpoint and raises `Interrupted`
    (a KeyboardInterrupt); a second ends the process at once. On the CPU a run that was killed and
    resumed ends with the same bits as one that was not. torch's random state is restored afterwards.

    Each process that torchrun started trains on its shard of every batch; all return the same result,
    and only the first one writes and prints anything. A run that torchrun restarts continues in
    `config.run.out`, whatever `resume` and `overwrite` are.

    Args:
        config: from `preset`, for instance `preset("digits", method="iaat")`.
        model: any module from images [N, C, H, W] float32 on [0, 1] to logits [N, classes], in
            place of the configuration's; it is moved to the device and trained in place.
        data: images in place of the configuration's, an `ImageData`, or (train, test), each (x, y), a Dataset or a
            DataLoader without shuffling: see `data.as_image_data`; `config.data.augment` still applies.
        resume: continue the run in `config.run.out`, which must have this configuration, or one of fewer epochs.
        overwrite: replace the run in `config.run.out`.
        on_epoch: called with each epoch's row of metrics.jsonl, on every rank.
        quiet: print nothing.

    Raises:
        FileExistsError: the run folder exists and neither `resume` nor `overwrite` is set.
        ValueError: bad configuration, device, data or checkpoint; the message names it. On several
            ranks also: they would not start from the same state.
        FloatingPointError: the loss is not finite; the last good checkpoint is still there.
        LostRank: another rank has ended.
        OSError: a file could not be written; the last good checkpoint is still there.
        BlockingIOError: another process is at work in the run folder.
        Interrupted: see above.
    """
    if model is not None:
        config = override(config, {"model": {"name": CUSTOM, "width": None, "depth": None}})
    if data is not None:
        config = override(config, {"data": {"name": CUSTOM, "path": None, "limit": None}})
    with joined() as ranks, ExitStack() as held:
        check_configurations(ranks, config)
        device = ranks.run_on_all(lambda: resolve_device(ranks.device(config.run.device)))
        folder, resuming = open_run(config, ranks, resume=resume, overwrite=overwrite)
        config = override(config, {"run": {"out": str(folder.path)}})
        # The values of "auto": those of the run that is resumed, or those for this device.
        settled = (
            partial(recorded_config, folder) if resuming else partial(resolved, config, device)
        )
        config = adopt(config, ranks.run_on_first(settled))
        cuda = [device.index] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(config.run.seed)
            if cuda and ranks.count > 1:
                torch.cuda.set_device(device)
            data, model = ranks.run_on_all(partial(make_parts, config, data, model, device))
            check_start(ranks, data, model, device)
            state = make_state(config, model, data, device, ranks)
            env = {**describe(device), "ranks": ranks.count}
            ranks.run_on_first(lambda: held.enter_context(exclusive_lock(folder.path)))
            if resuming:
                restore(config, folder, state, env, ranks)
            else:
                ranks.run_on_first(partial(folder.create, config.to_dict(), env))
            for line in never_reached(config) if ranks.first else ():
                logger.warning(line)
            _Run(config, folder, state, data, on_epoch, quiet, ranks).train()
        return FitResult(
            folder=folder,
            config=config,
            model=model,
            evaluated=state.evaluated,
            data=data,
            epsilon=state.memory.values.detach().cpu(),
            metrics=ranks.broadcast(folder.metrics() if ranks.first else []),
        )


class _Run:
    """The loop over epochs and steps, and what surrounds a step: learning rate, signals, checkpoints, metrics."""

    # The loss is read every so many steps on a GPU, because reading it makes the host wait, and every step on a CPU.
    READ_EVERY_ON_GPU = 25

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        state: TrainState,
        data: ImageData,
        on_epoch: Callable[[dict[str, Any]], None] | None,
        quiet: bool,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.folder = folder
        self.state = state
        self.data = data
        self.on_epoch = on_epoch
        self.quiet = quiet or not ranks.first
        self.ranks = ranks
        self.adaptive = methods.row(config.method).radius == "adaptive"
        self.total_steps = config.optim.epochs * state.steps_per_epoch
        self.read_every = 1 if state.device.type == "cpu" else self.READ_EVERY_ON_GPU
        self.guard = NonFiniteGuard(ranks, after=state.step)
        self.loader = TrainLoader(data.train, augment=config.data.augment, ranks=ranks)
        # Several ranks capture no steps: the first one says so.
        captures = config.optim.graph and ranks.first
        self.steps = CudaGraphStep(
            state.training_step,
            size=min(config.optim.batch_size, len(data.train)),
            capture=capture_for(state.device) if captures else None,
        )

    def train(self) -> None:
        state, config, first = self.state, self.config, self.ranks.first
        self.tensorboard = TensorBoardLogger(
            self.folder.tensorboard_dir,
            enabled=config.run.tensorboard and first,
            after=state.step,
        )
        self.progress = Progress(
            steps=self.total_steps,
            done=state.step,
            epochs=config.optim.epochs,
            adaptive=self.adaptive,
            quiet=self.quiet,
        )
        self.progress.start(
            f"training {config.method} on {len(self.data.train)} images of {config.data.name}, "
            f"preset {config.preset}, protocol {config.protocol}, on {state.device}, "
            f"step {state.step} of {self.total_steps}; run folder {self.folder.path}"
        )
        if config.run.fast:
            self.progress.start(f"fast: {in_words(config, state.device, self.ranks.count)}")
        if self.ranks.count > 1:
            self.progress.start(self.ranks.describe(config.optim.batch_size, len(self.data.train)))
        several = self.ranks.count > 1
        answer = "stopping after this step" + ("" if several else "; again to stop now")
        try:
            with (
                no_malloc_trim(state.device),
                StopSignals(patient=several, answer=None if self.quiet else answer) as signals,
                Checkpointer(self.folder, config.run, enabled=first) as self.checkpoints,
            ):
                while state.step < self.total_steps:
                    self._train_epoch(signals)
        finally:
            self.progress.close()
            self.tensorboard.close()

    def _train_epoch(self, signals: StopSignals) -> None:
        state, config = self.state, self.config
        epoch, size = state.epoch, len(self.data.train)
        order = datasets.epoch_order(size, seed=config.run.seed, epoch=epoch).to(state.device)
        started = time.perf_counter() - state.seconds
        batches = order.split(config.optim.batch_size)
        first = state.step - epoch * state.steps_per_epoch
        seeds = [
            step_seed(config.run.seed, state.step + ahead, Stream.AUGMENT)
            for ahead in range(len(batches) - first)
        ]
        with closing(self.loader(batches[first:], seeds)) as loaded:
            for position in range(first, len(batches)):
                self.rate = learning_rate(config.optim, epoch, position / len(batches))
                set_rate(state.optimizer, self.rate)
                self._train_step(self._next(loaded), epoch)
                state.seconds = time.perf_counter() - started
                over = position == len(batches) - 1
                if over:
                    self._end_epoch(epoch)
                # A signal that one rank receives stops all of them, after the same step.
                stop = self.ranks.all_max(signals.received or 0)
                if not over and (self.checkpoints.due(state.step) or stop):
                    self._save()
                if stop:
                    self._stop(stop)

    def _settle(self) -> None:
        """Wait for the checkpoint, so that no rank ends before the first has written it."""
        self.checkpoints.wait()
        self.ranks.all_max(0)

    def _stop(self, signum: int) -> None:
        self._settle()
        raise Interrupted(
            f"stopped after step {self.state.step} of {self.total_steps}, checkpoint saved; "
            f"resume with {again('train')} --resume --out {self.folder.path}",
            signum,
        )

    def _next(self, loaded: Iterator[GlobalBatch]) -> GlobalBatch:
        """The next batch. If an image that cannot be decoded stops the run, a checkpoint is saved first."""
        try:
            return next(loaded)
        except datasets.UnreadableImage as error:
            self._save()
            self._settle()
            raise datasets.UnreadableImage(
                f"{error}; stopped after step {self.state.step}, checkpoint saved: mend it, or leave it out with "
                f"--on-bad-image skip, and continue with --resume --out {self.folder.path}"
            ) from error

    def _train_step(self, batch: GlobalBatch, epoch: int) -> None:
        state, ranks, seed = self.state, self.ranks, self.config.run.seed
        if ranks.count > 1:
            # What a model draws (dropout) differs between ranks and needs no state in a checkpoint.
            torch.manual_seed(step_seed(seed, state.step, Stream.MODEL, ranks.rank))
        if batch.present:
            attack_seed = step_seed(seed, state.step, Stream.ATTACK)
            try:
                self.steps(batch, epoch=epoch, seed=attack_seed)
            except ValueError as error:
                raise ValueError(f"{error} (step {state.step + 1}, epoch {epoch + 1})") from error
        state.step += 1
        self.progress.step(epoch)
        if state.step % self.read_every == 0:
            eps = state.memory.values.mean().item() if self.adaptive else None
            self.progress.values(loss=self._mean_loss(), eps=eps)

    def _mean_loss(self) -> float:
        """The mean loss of the epoch so far; raises if it is not finite, or if steps have noted other bad values."""
        step = self.state.training_step
        loss, _, _, seen = step.totals.tolist()
        loss /= max(seen, 1)
        try:
            self.guard.look(loss, self.state.step, self.state.epoch, step.last)
        except FloatingPointError as error:
            self.checkpoints.wait()
            path = self.folder.checkpoint_path
            kept = f"the last good checkpoint is {path}" if path.is_file() else "none saved yet"
            raise FloatingPointError(
                f"{error}: training diverged, try a smaller learning rate; {kept}"
            ) from None
        self.steps.settle()
        return loss

    def _save(self) -> None:
        self._mean_loss()
        self.checkpoints.save(self.state.to_checkpoint(self.config.to_dict()))

    def _end_epoch(self, epoch: int) -> None:
        state = self.state
        row = self._row(epoch)
        if self.ranks.first:
            self._write_epoch(row)
        state.training_step.totals.zero_()
        state.seconds = 0.0
        # Last: a run killed before this line repeats the epoch's end and writes the same again.
        self.checkpoints.save(state.to_checkpoint(self.config.to_dict()))
        self.progress.epoch(row)
        if self.on_epoch is not None:
            self.on_epoch(row)

    def _write_epoch(self, row: dict[str, Any]) -> None:
        config, eps = self.config, self.state.memory.values
        last = row["epoch"] == config.optim.epochs
        if self.adaptive and (last or row["epoch"] % config.run.snapshot_epochs == 0):
            self.folder.save_epsilon(row["epoch"], eps)
        self.folder.append_metrics(row)
        self.tensorboard.epoch(row, eps)

    def _row(self, epoch: int) -> dict[str, Any]:
        state, config, method = self.state, self.config, self.state.training_step.method
        loss = self._mean_loss()
        _, clean, robust, seen = state.training_step.totals.tolist()
        size = max(seen, 1)
        return {
            "epoch": epoch + 1,
            "step": state.step,
            "lr": self.rate,
            "train_loss": loss,
            "train_clean_accuracy": clean / size if method.counts_clean else None,
            "train_robust_accuracy": robust / size if method.counts_robust else None,
            **radius_statistics(state.memory.values),
            "test_accuracy": shared_accuracy(
                self.ranks,
                state.evaluated,
                self.data.test,
                batch_size=config.evaluation.batch_size,
            ),
            "seconds": rounded(state.seconds),
        }
