"""What training shows while it runs: a live bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over all steps of the run: epoch, steps per second, loss, mean radius, time to go.

    Args:
        steps, done: of the run, and of them those done already.
        epochs: of the run.
        adaptive: whether each sample has a radius of its own, whose mean is shown.
        quiet: show nothing.
    """

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

    def start(self, text: str) -> None:
        """Say once what is being trained and where it goes."""
        if not self.quiet:
            print(text, flush=True)

    def step(self, epoch: int) -> None:
        """One step of the epoch with this index (from 0) is done."""
        self._bar.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
        self._bar.update()

    def values(self, *, loss: float, eps: float | None) -> None:
        """Show the mean loss of the epoch so far and the mean radius of the memory, if there is one to show."""
        radius = "" if eps is None else f", mean eps {eps * 255:.2f}/255"
        self._bar.set_postfix_str(f"loss {loss:.3f}{radius}", refresh=False)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over; `row` is its row of metrics.jsonl."""
        if not self.quiet and not self.live:
            radius = f"mean eps {row['eps_mean'] * 255:.2f}/255, " if self.adaptive else ""
            print(
                f"epoch {row['epoch']}/{self.epochs}: loss {row['train_loss']:.4f}, "
                f"test accuracy {row['test_accuracy']:.2%}, "
                f"{radius}{row['seconds']:.1f} s",
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal to whoever prints next."""
        self._bar.close()
