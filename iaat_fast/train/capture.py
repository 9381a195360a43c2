"""A CUDA graph of a whole training step: the warm-up and the capture, on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from iaat_fast.attacks.cudagraph import capture_cuda

Work = Callable[[], None]


class Capture(Protocol):
    """What `GraphedStep` asks of a device whose launches can be captured."""

    def warm_up(self, work: Work) -> None:
        """Run `work` as it will be captured."""

    def __call__(self, work: Work) -> Work:
        """Capture what `work` launches, and return what replays it; nothing is run meanwhile."""
        ...


class CudaCapture:
    """Captures on a stream of its own, where the warm-up has made what libraries keep for each stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Work) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        return capture_cuda(work, None, self._stream)


def capture_for(device: torch.device) -> Capture | None:
    """What captures steps on `device`, or None where nothing can."""
    return CudaCapture(device) if device.type == "cuda" else None
