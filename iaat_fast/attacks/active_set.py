"""Which rows still need steps: the worst case over restarts, and the active rows of one run."""

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

# Every how many steps rows that are done leave the batch. On an accelerator the host then waits for their number.
_COMPACT_EVERY = {"cpu": 1}
_COMPACT_EVERY_ELSEWHERE = 5
# Where the host may look at values at any time.
_READS_FREELY = {"cpu"}


class WorstCase:
    """Per row, the worst image found over the restarts.

    A row that is fooled keeps its first adversarial example and is left out of later restarts, which changes no
    verdict; a row that is never fooled keeps the image of largest loss. If rows share batch statistics, all of them run
    in every restart, and fooled ones keep what they have.

    With drop=False no row is left out, and each keeps its image of largest loss, fooled or not.
    """

    def __init__(self, call: Call, *, drop: bool = True) -> None:
        self.images = call.per_candidate(call.x).clone(memory_format=memory_format(call.x))
        self._loss = call.eps.new_full((call.rows,), -torch.inf)
        self._all = torch.arange(call.rows, device=call.x.device)
        self._fooled = torch.zeros(call.rows, dtype=torch.bool, device=call.x.device)
        self._remaining: Tensor | None = self._all  # None: `rows` has to read it
        self._coupled, self._drop = call.coupled, drop

    def rows(self) -> Tensor:
        """int64 [n], the rows that the next restart attacks; empty if all are fooled. Waits for the device."""
        if self._remaining is None:
            self._remaining = (~self._fooled).nonzero()[:, 0]
        return self._all if self._coupled and len(self._remaining) else self._remaining

    def take(self, rows: Tensor, x_adv: Tensor, fooled: Tensor, loss: Tensor) -> None:
        """Keep the images of a restart on `rows` [n] that are worse than those before; `fooled` bool [n], loss [n]."""
        loss = loss.to(self._loss.dtype)
        worse = loss > self._loss[rows]
        if self._drop:
            worse |= fooled
            worse &= ~self._fooled[rows]
        # torch.where, because indexing with a mask makes the host wait for the number of its entries.
        self.images[rows] = torch.where(as_column(worse, x_adv), x_adv, self.images[rows])
        self._loss[rows] = torch.where(worse, loss, self._loss[rows])
        if self._drop:
            self._fooled[rows] |= fooled
            self._remaining = None


@dataclasses.dataclass
class RunState:
    """The state of one run on its n rows: each field a tensor [n, ...], or None.

    A step replaces the tensors and does not write into them, since several fields may share one.

    found: bool [n], rows that need no further step.
    results: names of the fields that are still needed of a row after it has left the batch.
    """

    results: ClassVar[tuple[str, ...]]
    found: Tensor

    def only(self, rows: Tensor) -> Self:
        """The state of some rows, given by their positions, int64."""
        some = copy.copy(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            setattr(some, field.name, None if value is None else value[rows])
        return some

    def put(self, rows: Tensor, some: Self) -> None:
        """Copy the results of `some` into the rows at these positions, int64."""
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
        step: takes one step; it gets the state of the active rows, which it changes, and the step's number from 0.
        steps: number of steps.
        shrinks: whether rows may leave the batch; False if rows share batch statistics.
        compact_from: rows may leave before this step and later ones.
        passes: the call's counter of passes, or None.

    Returns:
        The state of all rows; of its tensors only the `results` are up to date.
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
    """Whether rows that are done leave the batch before this step; not before step 0."""
    return step >= 0 and step % _COMPACT_EVERY.get(device.type, _COMPACT_EVERY_ELSEWHERE) == 0


def active_rows(found: Tensor) -> Tensor | None:
    """The positions of the rows that stay in the batch, int64; None if all stay.

    Rows that are not found come first; found ones fill the batch up to a size of `bucket`, so that kernels are tuned,
    and graphs captured, for few shapes. Reads one number from the device.

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


def where_rows(which: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """`torch.where` by rows: images [n, ...] where `which`, bool [n], is True, else others [n, ...].

    On a CPU only the rows that change are copied, none of a batch that does not change: the result may be one of the
    arguments.
    """
    if which.device.type not in _READS_FREELY:
        return torch.where(as_column(which, images), images, others)
    rows = which.nonzero()[:, 0]
    if len(rows) == len(which):
        return images
    return others.index_copy(0, rows, images[rows]) if len(rows) else others


def as_column(values: Tensor, images: Tensor) -> Tensor:
    """Values [n] as [n, 1, ...], which broadcast over images [n, ...]."""
    return values.view(-1, *[1] * (images.dim() - 1))
