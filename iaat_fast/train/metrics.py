"""What a run reports about itself on the terminal and to TensorBoard, and the check that its loss is finite."""

from __future__ import annotations

import math
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from iaat_fast.evaluate.progress import say
from iaat_fast.storage import naming
from iaat_fast.train.distributed import Ranks

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def radius_statistics(eps: Tensor) -> dict[str, float]:
    """Mean, standard deviation and range of radii, under their names in metrics.jsonl and results.json."""
    # In float64: a float32 mean of equal radii may lie above the largest of them.
    eps = eps.double()
    return {
        "eps_mean": eps.mean().item(),
        "eps_std": eps.std(correction=0).item(),
        "eps_min": eps.min().item(),
        "eps_max": eps.max().item(),
    }


class Progress:
    """A bar over all steps of the run: epoch, steps per second, loss, mean radius, remaining time.

    Where standard error is no terminal, lines on standard output: one an epoch, and one a minute in longer epochs.

    Args:
        steps: of the whole run.
        done: steps done already.
        epochs: of the whole run.
        adaptive: whether each sample has a radius of its own, whose mean is shown.
        quiet: print nothing.
    """

    EVERY_S = 60.0
    """Seconds between two lines within an epoch."""

    def __init__(
        self, *, steps: int, done: int, epochs: int, adaptive: bool, quiet: bool = False
    ) -> None:
        self.epochs = epochs
        self.adaptive = adaptive
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not self.live,
        )
        self._steps, self._done, self._before = steps, done, done
        self._started = self._said = time.monotonic()
        self._at = ""

    def start(self, text: str) -> None:
        """Print a line about the run, before its first step."""
        if not self.quiet:
            say(text, sys.stdout)

    def step(self, epoch: int) -> None:
        """One step of the epoch with this index (from 0) is done."""
        self._at = f"epoch {epoch + 1}/{self.epochs}"
        self._done += 1
        self._bar.set_description(self._at, refresh=False)
        self._bar.update()

    def values(self, *, loss: float, eps: float | None) -> None:
        """Show the mean loss of the epoch so far and, if not None, the mean radius on the [0, 1] scale."""
        radius = "" if eps is None else f", mean eps {eps * 255:.2f}/255"
        self._bar.set_postfix_str(f"loss {loss:.3f}{radius}", refresh=False)
        if not self.quiet and not self.live and time.monotonic() - self._said >= self.EVERY_S:
            self._say(
                f"{self._at}: step {self._done} of {self._steps}, loss {loss:.4f}{radius}, {self._to_go()}"
            )

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is its row of metrics.jsonl."""
        if not self.quiet and not self.live:
            radius = f"mean eps {row['eps_mean'] * 255:.2f}/255, " if self.adaptive else ""
            self._say(
                f"epoch {row['epoch']}/{self.epochs}: loss {row['train_loss']:.4f}, "
                f"test accuracy {row['test_accuracy']:.2%}, "
                f"{radius}{row['seconds']:.1f} s, {self._to_go()}"
            )

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, flush=True)

    def _to_go(self) -> str:
        """The time that the steps left take at the rate of this process, its evaluations included."""
        seconds = (time.monotonic() - self._started) / max(self._done - self._before, 1)
        return f"{tqdm.format_interval(seconds * (self._steps - self._done))} to go"

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


class TensorBoardLogger:
    """Writes the metrics of each epoch to `folder`, over the number of steps done.

    Args:
        folder: of the event files.
        enabled: False: do nothing.
        after: steps done when the run is resumed: TensorBoard then hides what a killed run wrote
            after them.
    """

    def __init__(self, folder: Path, *, enabled: bool, after: int = 0) -> None:
        self._writer: SummaryWriter | None = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "run.tensorboard: on, expected tensorboard to be installed: "
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


_NAMED = 5


class NonFiniteGuard:
    """Ends a run whose loss is not finite. It is given the mean loss of the epoch every step, or every few steps.

    Args:
        ranks: those of the run.
        after: steps done already.
    """

    def __init__(self, ranks: Ranks, *, after: int) -> None:
        self._ranks = ranks
        self._looked = after

    def look(self, loss: float, step: int, epoch: int, last: list[tuple[Tensor, Tensor]]) -> None:
        """Raise FloatingPointError, on every rank, unless `loss` is finite.

        Args:
            loss: mean loss of the epoch so far, the same on all ranks.
            step: steps done.
            epoch: epochs finished.
            last: numbers and losses of this rank's samples of the last step.
        """
        looked, self._looked = self._looked, step
        if math.isfinite(loss):
            return
        where = f"the loss is {loss} at step {step} (epoch {epoch + 1})"
        if step - looked == 1:
            where += _named(self._ranks.gather(_not_finite(last)))
        elif step > looked:
            where += f"; it was finite at step {looked}, and not looked at in between"
        raise FloatingPointError(where)


def _not_finite(last: list[tuple[Tensor, Tensor]]) -> tuple[int, list[int]]:
    """The number of samples of this rank, and the numbers of those whose loss is not finite."""
    bad = [number for index, loss in last for number in index[~torch.isfinite(loss)].tolist()]
    return sum(len(index) for index, _ in last), bad


def _named(found: list[tuple[int, list[int]]]) -> str:
    """Text that names the first few such samples of each rank; "" if there are none."""
    size, count = sum(n for n, _ in found), sum(len(bad) for _, bad in found)
    if not count:
        return ""
    texts = []
    for rank, (_, bad) in enumerate(found):
        if bad:
            names = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
            texts.append(names if len(found) == 1 else f"{names} on rank {rank}")
    return f", that of {count} of the {size} samples of its batch: {'; '.join(texts)}"
