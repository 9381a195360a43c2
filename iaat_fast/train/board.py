"""TensorBoard events of a run: the columns of metrics.jsonl and the histogram of the radii."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

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
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def epoch(self, row: dict[str, Any], eps: Tensor) -> None:
        """Write one epoch: its row of metrics.jsonl, and the radii in units of 1/255."""
        if self._writer is None:
            return
        step = row["step"]
        for name, value in row.items():
            if name in ("epoch", "step") or value is None:
                continue
            if name.startswith("eps_"):
                self._writer.add_scalar(f"eps/{name.removeprefix('eps_')}", value * 255, step)
            else:
                group, _, rest = name.partition("_")
                self._writer.add_scalar(f"{group}/{rest}" if rest else f"run/{name}", value, step)
        self._writer.add_histogram("eps/histogram", eps * 255, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
