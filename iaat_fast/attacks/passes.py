"""How many passes through the network each sample of a call takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class PassCounter:
    """Forwards and backwards of each sample, counted where a batch meets the network; nothing is read.

    Whoever makes a smaller batch says so by `among`, so that attacks need not count.

    Args:
        samples: how many.
        device: where the counts are kept.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self._counts = torch.zeros(2, samples, dtype=torch.int64, device=device)
        self._rows: Tensor | None = None  # None: all of them

    def add(self, images: int, *, backward: bool, times: int = 1) -> None:
        """A batch of the samples at hand, or of several images of each, has passed through the network."""
        counts, rows = self._counts[: 1 + backward], self._rows
        samples = counts.shape[1] if rows is None else len(rows)
        if samples == 0:
            return
        each, left = divmod(images, samples)
        assert not left, f"{images} images of {samples} samples"
        if rows is None:
            counts += each * times
        else:
            counts[:, rows] += each * times

    def take(self) -> Tensor:
        """int64 [2, N]: forwards and backwards since the last time."""
        taken, self._counts = self._counts, torch.zeros_like(self._counts)
        return taken


@contextlib.contextmanager
def among(passes: PassCounter | None, rows: Tensor) -> Iterator[None]:
    """Batches are of these samples only, by their place among the samples at hand, int64 [n]."""
    if passes is None:
        yield
        return
    before = passes._rows
    passes._rows = rows if before is None else before[rows]
    try:
        yield
    finally:
        passes._rows = before
