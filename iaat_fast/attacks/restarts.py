"""What a call of an attack runs: its starts, its restarts, and the worst case of them per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from iaat_fast.attacks.active_set import WorstCase
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.channel_box import Boxed
from iaat_fast.attacks.objective import Objective
from iaat_fast.attacks.passes import among
from iaat_fast.ops.layout import memory_format

# The registered op, without the public function's checks: a call checks its arguments itself.
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default


class Restarts(Boxed, Objective):
    """The part of `Attack` that runs it; the attributes are those of its constructor."""

    restarts: int
    random_start: bool
    clamp_start: bool
    early_stop: bool

    def _attack(self, call: Call) -> Tensor:
        """All restarts; the worst case per sample."""
        if self.restarts == 1 and not self.early_stop:
            if call.trace is not None:
                call.trace.begin()
            return self._run_once(call, self._masked_start(call, restart=0), None)[0]
        worst = WorstCase(call)
        self._run_restarts(call, worst, range(self.restarts))
        return worst.images

    def _run_restarts(self, call: Call, worst: WorstCase, restarts: range) -> None:
        """Run these restarts, by number, on the rows that are not fooled yet; the number decides a restart's noise."""
        if call.trace is not None:
            call.trace.plan(restarts.stop)
        for restart in restarts:
            rows = worst.rows()
            if not len(rows):
                break
            start = self._masked_start(call, restart)[rows]
            if call.trace is not None:
                call.trace.begin()
            with among(call.passes, rows):
                worst.take(rows, *self._run_once(call, start, rows))

    def _images(self, call: Call) -> Tensor:
        """What `_attack` makes, as images like those that were given."""
        made = self._attack(call)
        if self._channels is None or call.given is None:
            return made
        return self._channels.restored(made, call.x, call.given, call.eps)

    @property
    def _iterates(self) -> int | None:
        """Number of iterates of a run that a trace records; None if the attack has no trace."""
        return None

    @property
    def _runs(self) -> int:
        """Number of runs that a call takes if no sample is fooled."""
        return self.restarts

    def _waits_for_device(self) -> bool:
        """Whether a call has to wait for the device before its end: then values are checked before it starts."""
        return self.restarts > 1 or self.early_stop

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run of the attack.

        Args:
            x_adv: start images [n, ...], which may be overwritten.
            rows: int64 [n], the rows of the call that x_adv holds; None for all.

        Returns:
            The images, whether they fool the model (bool [n]), and the loss of `_verdict` [n]. With rows=None the last
            two are not used and may be any tensors: a verdict costs a forward.
        """
        raise NotImplementedError

    def _masked_start(self, call: Call, restart: int) -> Tensor:
        return pin_(self._start(call, restart), call.x, call.mask)

    def _start(self, call: Call, restart: int) -> Tensor:
        """The start images [K*N, ...] of a restart."""
        if call.start is not None:
            start = call.start.detach()
            start = start if len(start) == call.rows else call.per_candidate(start)
            return start.clone(memory_format=memory_format(call.x))
        if not self.random_start:
            return call.per_candidate(call.x).clone(memory_format=memory_format(call.x))
        lo, hi = (self._lo, self._hi) if self.clamp_start else (-torch.inf, torch.inf)
        call.begin_restart(restart)
        return _random_start_linf(call.x, call.eps, call.stream, call.index, lo, hi)
