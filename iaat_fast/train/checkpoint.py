"""`TrainState`, what a run carries from step to step, and `Checkpointer`, which saves it while training continues."""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.evaluate.weights import fitted_names, plain_state_dict
from iaat_fast.run_folder import RunFolder
from iaat_fast.train.config import RunConfig
from iaat_fast.train.optim import load_optimizer_state, optimizer_state
from iaat_fast.train.step import TrainingStep
from iaat_fast.validate import one_line


@dataclass(kw_only=True)
class TrainState:
    """The live objects of a run and where it stands.

    `step` counts the steps done, `seconds` the time spent in the current epoch. Orders,
    augmentation and attack noise are functions of the seed and the step and need no state; the
    random generators are saved for models that draw from them (dropout).
    """

    model: nn.Module
    memory: EpsilonMemory
    optimizer: torch.optim.Optimizer
    training_step: TrainingStep
    device: torch.device
    steps_per_epoch: int
    average: AveragedModel | None = None
    step: int = 0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    def to_checkpoint(self, config: dict[str, Any]) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values only, so that it loads with `weights_only=True`.

        The tensors are the live ones: copy them before the next step.
        "ema", the average of the weights, and "ema_updates" are there if the run keeps an average.
        """
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        average: dict[str, Any] = {}
        if self.average is not None:
            average = {
                "ema": plain_state_dict(self.average.module),
                "ema_updates": int(self.average.n_averaged),
            }
        return {
            "model": plain_state_dict(self.model),
            **average,
            "epsilon": self.memory.values.detach(),
            "optimizer": optimizer_state(self.optimizer),
            "epoch": self.epoch,
            "step": self.step,
            "config": config,
            "seconds": self.seconds,
            "totals": self.training_step.totals,
            "scaler": self.training_step.update.amp.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_checkpoint(self, checkpoint: dict[str, Any], path: object) -> None:
        """Set all of the state from a checkpoint; `path` names it in errors.

        Raises:
            ValueError: its weights or radii are not those of this model and data set.
        """
        try:
            _load(self.model, checkpoint["model"])
            if self.average is not None:
                _load(self.average.module, checkpoint["ema"])
                self.average.n_averaged.fill_(checkpoint["ema_updates"])
            load_optimizer_state(self.optimizer, checkpoint["optimizer"])
            self.memory.load(checkpoint["epsilon"])
            self.training_step.totals.copy_(checkpoint["totals"])
            self.training_step.update.amp.load_state_dict(checkpoint["scaler"])
            self.step = int(checkpoint["step"])
            self.seconds = float(checkpoint["seconds"])
            rng = checkpoint["rng"]
            torch.set_rng_state(rng["cpu"])
            if self.device.type == "cuda" and rng["cuda"] is not None:
                torch.cuda.set_rng_state(rng["cuda"], self.device)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: does not fit this run's model and data: {one_line(error)}"
            ) from error


def _load(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict of `to_checkpoint`, whose names are plain, even into a model that torch.compile has wrapped."""
    model.load_state_dict(fitted_names(state, model.state_dict()))


class Checkpointer:
    """Saves checkpoints into a run folder while training continues.

    `save` copies the state to the CPU; a thread serialises, hashes and writes it. One checkpoint is
    written at a time: a `save` waits for the one before. An error in the thread is raised by the
    next call of any method. Leaving the block waits, so that afterwards the last checkpoint saved is
    on disk.

    Args:
        folder: of the run.
        config: says how often a checkpoint is due.
        enabled: whether this process writes at all.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, *, enabled: bool = True) -> None:
        self._folder = folder
        self._config = config
        self._enabled = enabled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after this step, by the number of steps or by the clock."""
        if self._pending is not None and self._pending.done():
            self.wait()
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        if every and step % every == 0:
            return True
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` (see `RunFolder.save_checkpoint`) and let the thread write it."""
        self.wait()
        if self._enabled:
            self._pending = self._thread.submit(self._folder.save_checkpoint, _copied(state))
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Wait until the last checkpoint saved is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _copied(value: Any) -> Any:
    """`value` with its tensors copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # A copy, and no new dict: a state dict carries the versions of its modules as an attribute.
        copied = copy.copy(value)
        copied.update({key: _copied(inner) for key, inner in value.items()})
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(inner) for inner in value)
    return value
