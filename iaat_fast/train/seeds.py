"""The seeds of a step, pure functions of the run's seed and the step, and copying a step's draws to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a seed is for; different streams of one step are independent."""

    AUGMENT = 0
    ATTACK = 1
    START = 2
    MIXUP = 3
    MODEL = 4
    LABELS = 5


def step_seed(seed: int, step: int, stream: Stream, rank: int | None = None) -> int:
    """The seed, in [0, 2**63), of one stream at one step of a run; `seed` is the run's, `rank` makes ranks differ."""
    words = [seed, step, stream] if rank is None else [seed, step, stream, rank]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def stream_seed(seed: int, stream: Stream) -> int:
    """The seed of a further stream of the step whose own seed is `seed`."""
    return step_seed(seed, 0, stream)


class Packed:
    """Groups of named tensors on the CPU, packed into one vector, so that they reach a GPU in one copy.

    Args:
        groups: the tensors, int64 or float64, of any shapes.

    Attributes:
        words: int64, the bits of all elements, 8 bytes each.
    """

    def __init__(self, groups: Sequence[Mapping[str, Tensor]]) -> None:
        self._groups = groups
        parts = [tensor.reshape(-1) for group in groups for tensor in group.values()]
        self.words = torch.cat(
            [part.view(torch.int64) for part in parts] or [torch.empty(0).long()]
        )

    def to(self, device: torch.device) -> Tensor:
        """The words on `device`; the host does not wait for the copy."""
        return self._staged(device).to(device, non_blocking=True)

    def copy_to(self, words: Tensor) -> None:
        """Overwrite the words of another `Packed` of the same shapes; the host does not wait for the copy."""
        words.copy_(self._staged(words.device), non_blocking=True)

    def unpacked(self, words: Tensor) -> list[dict[str, Tensor]]:
        """The groups as views of `words`, on any device."""
        groups: list[dict[str, Tensor]] = []
        start = 0
        for group in self._groups:
            views = {}
            for name, like in group.items():
                part = words[start : start + like.numel()]
                views[name] = part.view(like.dtype).view(like.shape)
                start += like.numel()
            groups.append(views)
        return groups

    def _staged(self, device: torch.device) -> Tensor:
        """The words in pinned memory if they go to a GPU: only from there the copy runs while the host continues."""
        return self.words.pin_memory() if device.type == "cuda" else self.words
