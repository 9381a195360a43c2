"""Count the passes through the network that each sample of a call takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class PassCounter:
    """Forwards and backwards of each sample, counted by `Network` for each batch, without waiting for the device.

    Code that runs a smaller batch does so inside `among`, so that attacks need not count themselves.

    Args:
        samples: number of samples.
        device: where the counts are stored.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        self._counts = torch.zeros(2, samples, dtype=torch.int64, device=device)
        self._rows: Tensor | None = None  # None: all of them

    def add(self, images: int, *, backward: bool, times: int = 1) -> None:
        """Count `times` passes of a batch of the current samples, with one or several images of each."""
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
        """int64 [2, N]: forwards and backwards since the last `take`."""
        taken, self._counts = self._counts, torch.zeros_like(self._counts)
        return taken


@contextlib.contextmanager
def among(passes: PassCounter | None, rows: Tensor) -> Iterator[None]:
    """A context in which batches hold only these samples, int64 [n] positions among the current samples."""
    if passes is None:
        yield
        return
    before = passes._rows
    passes._rows = rows if before is None else before[rows]
    try:
        yield
    finally:
        passes._rows = before
