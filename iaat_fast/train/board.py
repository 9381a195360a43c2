"""TensorBoard events of a run: the columns of metrics.jsonl and the histogram of the radii."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from iaat_fast.files import naming

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes to `folder`, against the number of steps done; does nothing if not `enabled`.

    Args:
        after: steps done when the run is resumed: TensorBoard then hides what a killed run wrote
            beyond them.
    """

    def __init__(self, folder: Path, *, enabled: bool, after: int = 0) -> None:
        self._writer: SummaryWriter | None = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "run.tensorboard is on and tensorboard is not installed: "
                "pip install tensorboard, or pass --no-tensorboard"
            ) from error
        self._folder = folder
        _silence_worker()
        with naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def epoch(self, row: dict[str, Any], eps: Tensor) -> None:
        """Write one epoch: its row of metrics.jsonl, and the radii in units of 1/255."""
        if self._writer is None:
            return
        with naming(self._folder):
            self._add(self._writer, row, eps)
            self._writer.flush()

    @staticmethod
    def _add(writer: SummaryWriter, row: dict[str, Any], eps: Tensor) -> None:
        step = row["step"]
        for name, value in row.items():
            if name in ("epoch", "step") or value is None:
                continue
            if name.startswith("eps_"):
                writer.add_scalar(f"eps/{name.removeprefix('eps_')}", value * 255, step)
            else:
                group, _, rest = name.partition("_")
                writer.add_scalar(f"{group}/{rest}" if rest else f"run/{name}", value, step)
        writer.add_histogram("eps/histogram", eps * 255, step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            with naming(self._folder):
                self._writer.close()


def _silence_worker() -> None:
    """Keep tensorboard's writer thread from printing a traceback when the disk is full.

    The thread hands its exception to the next call of the writer, which raises it; the default hook
    would print it as well.
    """
    previous = threading.excepthook
    if getattr(previous, "silences_tensorboard", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            previous(args)

    hook.silences_tensorboard = True  # type: ignore[attr-defined]
    threading.excepthook = hook
