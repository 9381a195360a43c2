"""Who is still worth a step: the worst case over restarts, and the active rows of one run."""

from __future__ import annotations

import torch
from torch import Tensor

from iaat_fast.attacks.call import Call
from iaat_fast.ops.layout import memory_format

# How often an attack that stops early looks at who is left. On an accelerator a look makes the host wait.
_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 5


class WorstCase:
    """Per row, the worst images found over the restarts.

    A row that falls keeps its first adversarial example and is left out of later restarts, which changes no verdict;
    one that never falls keeps its iterate of largest loss. Batch statistics tie rows together: then all of them run
    each time, and fallen ones keep what they have.

    With drop=False nobody is left out, and each row keeps its images of largest loss, fallen or not.
    """

    def __init__(self, call: Call, *, drop: bool = True) -> None:
        self.images = call.per_candidate(call.x).clone(memory_format=memory_format(call.x))
        self._loss = call.eps.new_full((call.rows,), -torch.inf)
        self._all = torch.arange(call.rows, device=call.x.device)
        self._fallen = torch.zeros(call.rows, dtype=torch.bool, device=call.x.device)
        self._standing: Tensor | None = self._all  # None: to be counted
        self._coupled, self._drop = call.coupled, drop

    def rows(self) -> Tensor:
        """int64, the rows that the next restart attacks; empty when all have fallen. Reads, after a restart."""
        if self._standing is None:
            self._standing = (~self._fallen).nonzero()[:, 0]
        return self._all if self._coupled and len(self._standing) else self._standing

    def take(self, rows: Tensor, x_adv: Tensor, fooled: Tensor, loss: Tensor) -> None:
        """Keep what a restart has made of `rows`."""
        loss = loss.to(self._loss.dtype)
        worse = loss > self._loss[rows]
        if self._drop:
            worse |= fooled
            worse &= ~self._fallen[rows]
        # Not by a mask as an index, whose entries the host would have to count.
        self.images[rows] = torch.where(as_column(worse, x_adv), x_adv, self.images[rows])
        self._loss[rows] = torch.where(worse, loss, self._loss[rows])
        if self._drop:
            self._fallen[rows] |= fooled
            self._standing = None


def as_column(values: Tensor, images: Tensor) -> Tensor:
    """[n] as [n, 1, ...], to be broadcast over images [n, ...]."""
    return values.view(-1, *[1] * (images.dim() - 1))


def should_compact(step: int, device: torch.device) -> bool:
    """Whether an attack that stops early looks, before this step, at who is left."""
    return step % _LOOK_EVERY.get(device.type, _LOOK_EVERY_ELSEWHERE) == 0


def active_rows(found: Tensor) -> Tensor | None:
    """The rows to go on with, where that makes a smaller batch: int64, those not found first; None to keep all.

    The sizes are those of `bucket`, filled up with rows that have been found, so that kernels are chosen, and graphs
    captured, for few shapes.

    Args:
        found: bool [n], rows that need no further step.
    """
    size = bucket(int((~found).sum()), len(found))
    return None if size == len(found) else found.int().argsort(stable=True)[:size]


def bucket(active: int, n: int) -> int:
    """The smallest of n, 3n/4, n/2, 3n/8, n/4 ... (rounded up) and 0 that holds `active` rows."""
    if active == 0:
        return 0
    sizes = (-(-n * quarters // 2**k) for k in range(2, n.bit_length() + 3) for quarters in (4, 3))
    return min(size for size in sizes if size >= active)
