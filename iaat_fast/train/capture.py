"""A CUDA graph of a whole training step: the warm-up and the capture, on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], None]


class Capture(Protocol):
    """What `GraphedStep` asks of a device whose launches can be captured."""

    def warm_up(self, work: Work) -> None:
        """Run `work` as it will be captured."""

    def __call__(self, work: Work) -> Work:
        """Capture what `work` launches, and return what replays it; nothing is run meanwhile."""
        ...


class CudaCapture:
    """Captures on a stream of its own, where the warm-up has made what libraries keep for each stream.

    Raises, where `work` cannot be captured, its error, and where there is none the one that ended the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._generator = torch.cuda.default_generators[self._stream.device_index]

    def warm_up(self, work: Work) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def __call__(self, work: Work) -> Work:
        drawn = self._generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        failures: list[Exception] = []
        try:
            # The outer block gives the current stream back where the capture fails: torch's own then does not. Other
            # threads, such as the one that pins memory for decoded images, go on meanwhile ("thread_local").
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    work()
                except Exception as failure:
                    failures.append(
                        failure
                    )  # ending the capture may raise another, which says less
                    raise
        except Exception as error:
            # A capture that was not ended leaves torch's generator in the belief that it goes on.
            self._generator.graphsafe_set_state(drawn)
            raise (failures or [error])[0] from None
        return graph.replay


def capture_for(device: torch.device) -> Capture | None:
    """What captures steps on `device`, or None where nothing can."""
    return CudaCapture(device) if device.type == "cuda" else None
