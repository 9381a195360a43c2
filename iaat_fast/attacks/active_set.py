"""Which rows are still worth a step: the worst case over restarts, and the active rows of one run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from iaat_fast.attacks.call import Call
from iaat_fast.attacks.passes import PassCounter, among
from iaat_fast.ops.layout import memory_format

# After how many steps an attack that stops early asks who is left. On an accelerator the answer makes the host wait.
_COMPACT_EVERY = {"cpu": 1}
_COMPACT_EVERY_ELSEWHERE = 5


class WorstCase:
    """Per row, the worst images found over the restarts.

    A row that falls keeps its first adversarial example and is left out of later restarts, which changes no verdict;
    one that never falls keeps its iterate of largest loss. Batch statistics tie rows together: then all of them run
    each time, and fallen ones keep what they have.

    With drop=False no row is left out, and each keeps its images of largest loss, fallen or not.
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


@dataclasses.dataclass
class RunState:
    """What one run knows of its n rows: each field a tensor [n, ...], or None.

    A step replaces tensors and does not write into them, since several names may share one.

    found: bool [n], rows that need no further step.
    results: the fields that are still wanted of a row after it has left the batch.
    """

    results: ClassVar[tuple[str, ...]]
    found: Tensor

    def only(self, rows: Tensor) -> Self:
        """The state of some of the rows, by their place."""
        some = copy.copy(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            setattr(some, field.name, None if value is None else value[rows])
        return some

    def put(self, rows: Tensor, some: Self) -> None:
        """Take over the results of some of the rows, by their place."""
        for name in self.results:
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(some, name)))


_State = TypeVar("_State", bound=RunState)


def run_active(
    state: _State,
    step: Callable[[_State, int], None],
    steps: int,
    *,
    shrinks: bool,
    compact_from: int = 0,
    passes: PassCounter | None = None,
) -> _State:
    """Take steps on the rows that are not found yet, in a batch that shrinks as rows are found.

    Args:
        state: of all rows, before the first step.
        step: one step, given the state of the rows that are left, which it changes, and its number, counted from 0.
        steps: how many.
        shrinks: whether rows may leave; not where batch statistics tie them together.
        compact_from: number of the first step before which they may.
        passes: of the call.

    Returns:
        The state of all rows. Of its tensors the `results` are up to date.
    """
    whole, place = state, None
    for number in range(steps):
        if shrinks and should_compact(number - compact_from, state.found.device):
            rows = active_rows(state.found)
            if rows is not None:
                if place is not None:
                    whole.put(place, state)
                state, place = state.only(rows), rows if place is None else place[rows]
                if not len(rows):
                    break
        if place is None or passes is None:
            step(state, number)
        else:
            with among(passes, place):
                step(state, number)
    if place is not None:
        whole.put(place, state)
    return whole


def should_compact(step: int, device: torch.device) -> bool:
    """Whether to ask, before a step of this number, who is left. Below 0 nothing is known yet."""
    return step >= 0 and step % _COMPACT_EVERY.get(device.type, _COMPACT_EVERY_ELSEWHERE) == 0


def active_rows(found: Tensor) -> Tensor | None:
    """The rows that stay, where that makes a smaller batch: int64, those not found first; None where all stay.

    The sizes are those of `bucket`, filled up with rows that have been found, so that kernels are chosen, and graphs
    captured, for few shapes. Reads one number from the device.

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


def as_column(values: Tensor, images: Tensor) -> Tensor:
    """Values [n] as [n, 1, ...], which broadcast over images [n, ...]."""
    return values.view(-1, *[1] * (images.dim() - 1))
