"""When a checkpoint is saved, and how: copied in the step, written by a thread beside it."""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from iaat_fast.run_folder import RunFolder
from iaat_fast.train.config import RunConfig


class Checkpointer:
    """Saves checkpoints into a run folder while training goes on.

    The state is copied to the CPU when `save` is called; serialising, hashing and writing it is a
    thread's work. One is written at a time: a `save` waits for the one before. What went wrong in
    the thread is raised by the next call of any method. Leaving the block waits, so that afterwards
    the last checkpoint saved is on disk.

    Args:
        folder: of the run.
        config: how often.
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
        """Whether one is to be saved after this step, by the number of steps or by the clock."""
        if self._pending is not None and self._pending.done():
            self.wait()
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        if every and step % every == 0:
            return True
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state`, see `RunFolder.save_checkpoint`, and have it written."""
        self.wait()
        if self._enabled:
            self._pending = self._thread.submit(self._folder.save_checkpoint, _copied(state))
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Until what was saved is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _copied(value: Any) -> Any:
    """`value` with its tensors copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # A state dict carries the versions of its modules as an attribute.
        copied = copy.copy(value)
        copied.update({key: _copied(inner) for key, inner in value.items()})
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(inner) for inner in value)
    return value
