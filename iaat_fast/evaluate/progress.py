"""What a suite shows while it is measured: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Passes done, out of those still expected, and the time to go at the rate so far.

        with Progress() as tell:
            evaluate_suite(..., tell=tell)

    The end moves with what is learnt: samples that fall early leave fewer passes to do. Parts count
    for themselves (gradients of images; with corruptions, images), so "to go" is of the part named.
    """

    def __init__(self, *, every: float = 60.0) -> None:
        """`every`: seconds between two lines, where standard error is no terminal."""
        self._live = sys.stderr.isatty()
        self._every = every

    def __enter__(self) -> Progress:
        self._started = self._said = time.monotonic()
        self._first, self._done = 0.0, math.inf
        self._bar = tqdm(
            unit=" passes", unit_scale=True, dynamic_ncols=True, disable=not self._live
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, name: str, done: float, remaining: float) -> None:
        """What is measured, passes done and passes expected yet; those of an earlier process are among the done."""
        if self._live:
            self._bar.set_description(name, refresh=False)
            self._bar.total = done + remaining
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if done < self._done:  # the first call of a part: nothing before it was timed
            self._first, self._started = done, now
        self._done = done
        if now - self._said < self._every:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        to_go = tqdm.format_interval(remaining / rate) if rate > 0 else "?"
        whole = done + remaining
        print(
            f"{name}: {tqdm.format_sizeof(done)} of {tqdm.format_sizeof(whole)} passes "
            f"({done / whole:.0%}), {to_go} to go",
            file=sys.stderr,
            flush=True,
        )
