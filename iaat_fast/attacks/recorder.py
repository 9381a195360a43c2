"""Records what each iteration of an attack sees, in place on the device: nothing waits, and steps may be captured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


@dataclasses.dataclass
class Recording:
    """The T iterates of one run on the n rows of a call, a line each.

    line: int64 [1], the line that is written next.
    loss, step_size: float32 [T, n]; NaN for rows that are not attacked.
    success: bool [T, n]; True for rows that are not attacked, as they have been fooled before.
    """

    line: Tensor
    loss: Tensor
    success: Tensor
    step_size: Tensor

    @classmethod
    def blank(cls, lines: int, rows: int, device: torch.device) -> Recording:
        values = torch.full((2, lines, rows), torch.nan, device=device)
        success = torch.ones(lines, rows, dtype=torch.bool, device=device)
        line = torch.zeros(1, dtype=torch.int64, device=device)
        return cls(line, values[0], success, values[1])

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields in their order."""
        return self.line, self.loss, self.success, self.step_size

    def write(
        self,
        rows: Tensor | None,
        loss: Tensor,
        success: Tensor,
        step_size: Tensor,
        done: Tensor | None = None,
    ) -> None:
        """Fill the next line, in place.

        Args:
            rows: int64 [m], the rows that these are; None for all.
            loss, success, step_size: [m].
            done: bool [m], rows that are in the batch without being attacked; None if none are.
        """
        if done is not None:
            loss, step_size = (each.masked_fill(done, torch.nan) for each in (loss, step_size))
            success = success | done
        for whole, values in zip(self.tensors[1:], (loss, success, step_size), strict=True):
            values = values.to(whole.dtype)
            if rows is None:
                whole.index_copy_(0, self.line, values.unsqueeze(0))
            else:
                whole[self.line, rows] = values
        self.line += 1


class Recorder:
    """The recordings of a call with one candidate per sample, one for each of its runs.

    Args:
        lines: iterates of a run.
        runs: number of runs, unless `plan` names another.
        samples: int64 [n], the samples of the call.

    Attributes:
        see_last: records the last iterates of the current run, given the logits of the verdict on them; None where they
            are recorded already.
    """

    def __init__(self, lines: int, runs: int, samples: Tensor) -> None:
        self.samples = samples
        self.see_last: Callable[[Tensor], None] | None = None
        self._lines, self._runs, self._planned = lines, runs, 0
        self._recordings: list[Recording] = []

    @property
    def runs(self) -> int:
        """Number of runs that the call takes if no sample is fooled."""
        return self._planned or self._runs

    def plan(self, runs: int) -> None:
        """Runs are planned up to this number, which may be smaller for a model of few classes."""
        self._planned = runs

    def begin(self) -> None:
        """Begin the recording of the next run."""
        self._recordings.append(
            Recording.blank(self._lines, len(self.samples), self.samples.device)
        )

    @property
    def current(self) -> Recording:
        """The recording of the current run."""
        return self._recordings[-1]

    def see(self, logits: Tensor) -> None:
        """Record the last iterates, if they are not recorded yet, from the logits of the verdict on them."""
        if self.see_last is not None:
            see_last, self.see_last = self.see_last, None
            see_last(logits)

    def whole(self, runs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, success and step size, [runs * T, n]; those of runs that no sample needed are blank."""
        blank = Recording.blank(self._lines, len(self.samples), self.samples.device)
        each = [*self._recordings, *[blank] * (runs - len(self._recordings))]
        for recording in each:
            recording.step_size[-1:].fill_(torch.nan)  # no step is taken from the last iterate
        loss = torch.cat([recording.loss for recording in each])
        success = torch.cat([recording.success for recording in each])
        return loss, success, torch.cat([recording.step_size for recording in each])
