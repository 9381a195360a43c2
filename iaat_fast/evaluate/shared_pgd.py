"""`SharedPGD`: several PGD attacks of one radius and step size in one run, which computes each restart once for all.

A step of PGD depends only on the current iterate: the iterate after 10 steps of a run of 1,000 is that of
PGD-10 from the same start, bit for bit. So attacks that differ only in steps and restarts share iterates.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iaat_fast import ops, validate
from iaat_fast.attacks import PGD, AttackStats
from iaat_fast.data import Samples, as_samples, fetch
from iaat_fast.evaluate.progress import Tally, WorkEstimator, charge, expected_passes

MAX_STEPS = 50
"""Most steps of one call of `advance`, so that the caller can save between calls."""

# A batch is refilled once at most this share of it is in use. New rows are at other steps than the old ones, so
# refilling more often would make the calls of `advance` shorter.
_REFILL_AT = 0.75

Keep = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class AttackBudget:
    """Steps and restarts of one of the attacks.

    Args:
        name: of the attack, unique.
        steps: steps of each restart.
        restarts: random starts.
    """

    name: str
    steps: int
    restarts: int


@dataclass(frozen=True)
class _Batch:
    """The rows attacked together, which may be at different steps.

    `index` (sample numbers) and `step` are int64 [n] on the CPU; x (images), y (classes) and x_adv (iterates) are on
    the device. A new row is at step -1, so that an attack of 0 steps is still ahead of it.
    """

    index: Tensor
    step: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor

    @classmethod
    def empty(cls, split: Samples) -> _Batch:
        """A batch of no rows, with the image shape of the split."""
        none = torch.zeros(0, dtype=torch.int64)
        x, y = fetch(split, none.to(split.labels.device))
        return cls(none, none, x, y, x)

    @property
    def taken(self) -> Tensor:
        """int64 [n], steps taken."""
        return self.step.clamp(min=0)

    def joined(self, other: _Batch) -> _Batch:
        """These rows, then the other's."""
        return _Batch(
            torch.cat([self.index, other.index]),
            torch.cat([self.step, other.step]),
            torch.cat([self.x, other.x]),
            torch.cat([self.y, other.y]),
            torch.cat([self.x_adv, other.x_adv]),
        )

    def only(self, rows: Tensor) -> _Batch:
        """The rows selected by `rows`, bool [n]; without a copy if all are."""
        if bool(rows.all()):
            return self
        kept = rows.to(self.y.device)
        return _Batch(
            self.index[rows], self.step[rows], self.x[kept], self.y[kept], self.x_adv[kept]
        )


class SharedPGD:
    """The verdicts of several PGD attacks, each the same as that of `PGD` alone with its steps, restarts and seed.

        run = SharedPGD(model, split, budgets, eps=8/255, alpha=2/255)
        while not run.finished:
            run.advance()
        run.standing(0)                     # bool [N], the verdicts of the first attack

    Restarts run one after the other, each over the whole split. In restart r a sample is attacked only up to the steps
    of the longest attack that has more than r restarts and to which the sample is still robust. Rows that are done
    leave the batch, which is refilled from a queue, so its rows may be at different steps; a call of `advance` takes
    steps until an attack ends for one of the rows.

    Args:
        model: the attacked model, whose verdicts count unless `judge` is given.
        split: the samples, on the model's device.
        marks: the steps and restarts of each attack, at least one.
        eps: radius, on the [0, 1] scale.
        alpha: step size, on the [0, 1] scale.
        targeted: False, or "random": descend the loss to a class drawn once per sample and seed. A sample is still
            robust if it is classified as its true class.
        batch_size: samples attacked at once.
        seed: of the random starts and targets.
        any_iterate: a sample is not robust if any iterate, the start included, fools the model, for every attack with
            at least as many steps; False: only the last iterate of each restart of an attack counts.
        judge: the model whose verdicts count, if it is not the attacked one; only without any_iterate.
        keep: called as keep(name, index, x_adv) with the images that an attack's verdicts are based on; for the same
            sample, those of a later call replace the earlier ones.
        samples: numbers int64 [K] of those to attack; all by default. The verdicts of the others are False.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Samples,
        marks: Sequence[AttackBudget],
        *,
        eps: float,
        alpha: float,
        targeted: Literal[False, "random"] = False,
        batch_size: int = 256,
        seed: int = 0,
        any_iterate: bool = False,
        judge: nn.Module | None = None,
        keep: Keep | None = None,
        samples: Tensor | None = None,
    ) -> None:
        split = as_samples(split)
        samples = torch.arange(len(split)) if samples is None else samples.cpu()
        if len(samples) == 0:
            raise ValueError("samples: empty, expected at least 1 number")
        if not marks:
            raise ValueError("marks: none given, expected at least 1")
        for budget in marks:
            validate.integer("restarts", budget.restarts, 1)
            validate.integer("steps", budget.steps, 0)
        validate.integer("batch_size", batch_size, 1)
        if judge is not None and any_iterate:
            raise ValueError(
                "any_iterate: the attack sees its own model's verdicts, not the judge's"
            )
        self.marks = tuple(marks)
        self._split, self._batch_size, self._seed, self._eps = split, batch_size, seed, eps
        self._any, self._keep = any_iterate, keep
        most = max(budget.steps for budget in marks)
        self._pgd = PGD(
            model, eps, alpha, most, seed=seed, targeted=targeted, early_stop=any_iterate
        )
        # The judge's attack is not run: it only computes logits.
        self._judge = self._pgd if judge is None else PGD(judge, eps, alpha, most)
        self._steps = torch.tensor([budget.steps for budget in marks])
        self._restarts = torch.tensor([budget.restarts for budget in marks])
        self._standing = torch.zeros(len(marks), len(split), dtype=torch.bool)
        self._standing[:, samples] = True
        self._tallies = [
            Tally(AttackStats(planned=len(samples) * budget.steps * budget.restarts))
            for budget in marks
        ]
        self._batch, self._queue = _Batch.empty(split), samples
        self.restart, self._before, self._estimator = 0, self._standing, WorkEstimator()

    @property
    def finished(self) -> bool:
        """Whether all verdicts are known."""
        return all(map(self.is_known, range(len(self.marks))))

    def is_known(self, number: int) -> bool:
        """Whether the verdicts of attack `number` are final."""
        done = self.restart + self.restart_finished
        return done >= self.marks[number].restarts or not bool(self._standing[number].any())

    def standing(self, number: int) -> Tensor:
        """bool [N] on the CPU, the verdicts of attack `number` so far; True is robust."""
        return self._standing[number].clone()

    def tally(self, number: int) -> Tally:
        """Gradients and time of attack `number`. Shared gradients count for the attack with the fewest steps."""
        return self._tallies[number]

    @property
    def passes(self) -> int:
        """Gradients taken, one image each."""
        return sum(tally.gradients.gradients for tally in self._tallies)

    @property
    def passes_of_restart(self) -> int:
        """Gradients of the current restart; a sample fooled within a call of `advance` counts all steps of the call."""
        return self._estimator.taken + int(self._batch.taken.sum())

    @property
    def restart_finished(self) -> bool:
        """Whether all samples are done with the current restart."""
        return self.settled == len(self._split)

    @property
    def settled(self) -> int:
        """How many samples are done with the current restart."""
        return len(self._split) - len(self._queue) - len(self._batch.index)

    def remaining(self) -> float:
        """Gradient passes still expected, one image each; see `progress.expected_passes`."""
        if self.finished:
            return 0.0
        left = (
            self._depths(self._queue).sum()
            + (self._depths(self._batch.index) - self._batch.taken).sum()
        )
        done = torch.ones(len(self._split), dtype=torch.bool)
        done[torch.cat([self._queue, self._batch.index])] = False
        return expected_passes(
            [(budget.steps, budget.restarts) for budget in self.marks],
            restart=self.restart,
            before=self._before,
            standing=self._standing,
            done=done,
            left=int(left),
            estimator=self._estimator,
        )

    def advance(self, most: int = MAX_STEPS) -> None:
        """Take steps on all rows of the batch, until an attack ends for one of them or `most` steps are taken."""
        started = time.perf_counter()
        if self.restart_finished:
            self._start_restart(self.restart + 1)
        batch = self._filled()
        heading_for = self._next_attacks(batch)
        steps = min(most, int((self._steps[heading_for] - batch.taken).min()))
        self._pgd.steps = steps
        index = batch.index.to(batch.x.device)
        with warnings.catch_warnings():
            # `warn` warns once about the totals, instead of once per batch here.
            warnings.filterwarnings("ignore", r".*gradient entries are", RuntimeWarning)
            x_adv = self._pgd(batch.x, batch.y, start=batch.x_adv, index=index)
        batch = _Batch(batch.index, batch.taken + steps, batch.x, batch.y, x_adv)
        standing = self._verdicts(batch)
        stays = self._needed(batch.index, batch.step, standing).any(0)
        # Attributes change only from here on: an error or interrupt above leaves the state as it was.
        self._standing = standing
        rows = torch.bincount(heading_for, minlength=len(self.marks)).tolist()
        charge(self._tallies, rows, self._pgd.stats, time.perf_counter() - started)
        self._estimator = self._estimator.plus(
            int(batch.step[~stays].sum()), int(self._depths(batch.index)[~stays].sum())
        )
        self._batch = batch.only(stays)

    def warn(self) -> None:
        """Warn if the gradients were NaN or mostly zero, see `AttackStats`."""
        total = self._tallies[0].gradients
        for tally in self._tallies[1:]:
            total = total.plus(tally.gradients)
        total.warn()

    def state(self) -> dict[str, Any]:
        """The whole state, as tensors and plain values, which later calls do not change."""
        return {
            "restart": self.restart,
            "queue": self._queue,
            "index": self._batch.index,
            "step": self._batch.step,
            "x_adv": self._batch.x_adv.cpu(),
            "standing": self._standing,
            "before": self._before,
            "economy": list(self._estimator),
            "tallies": [tally.state() for tally in self._tallies],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from an earlier `state()` of the same attacks and samples.

        If the batch size is smaller now, the rows beyond it start their restart again.

        Raises:
            ValueError: the state is of other attacks or samples, or damaged.
        """
        try:
            if state["standing"].shape != self._standing.shape:
                raise ValueError(f"verdicts {list(state['standing'].shape)}")
            index, step = state["index"], state["step"]
            room = slice(self._batch_size)
            x, y = fetch(self._split, index[room].to(self._split.labels.device))
            x_adv = state["x_adv"][room].to(x.device)
            if x_adv.shape != x.shape or len(step) != len(index):
                raise ValueError(f"images {list(x_adv.shape)}")
            for tally, taken in zip(self._tallies, state["tallies"], strict=True):
                tally.load(taken)
            self.restart = int(state["restart"])
            self._standing, self._before = state["standing"], state["before"]
            self._estimator = WorkEstimator(*state["economy"])
            self._batch = _Batch(index[room], step[room], x, y, x_adv)
            self._queue = torch.cat([index[self._batch_size :], state["queue"]])
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"not the state of this attack ({error})") from error

    def _start_restart(self, restart: int) -> None:
        """Queue the samples of this restart, those with most steps first, so that rows of few steps leave together."""
        self.restart, self._before, self._estimator = restart, self._standing, WorkEstimator()
        everyone = torch.arange(len(self._split))
        depths = self._depths(everyone)
        # By `needed`, not by depth > 0: an attack of 0 steps needs its samples, too.
        needed = self._needed(everyone, torch.full_like(everyone, -1), self._standing).any(0)
        order = depths.argsort(descending=True, stable=True)
        self._queue = order[needed[order]]

    def _needed(self, index: Tensor, step: Tensor, standing: Tensor) -> Tensor:
        """bool [M, n], which attacks have not ended yet, in this restart, for samples at these steps."""
        ahead = self._steps[:, None] > step
        return standing[:, index] & ahead & (self._restarts > self.restart)[:, None]

    def _depths(self, index: Tensor) -> Tensor:
        """int64 [n], the steps planned for samples at the start of this restart."""
        needed = self._needed(index, torch.full_like(index, -1), self._before)
        return torch.where(needed, self._steps[:, None], 0).amax(0)

    def _next_attacks(self, batch: _Batch) -> Tensor:
        """int64 [n], the number of the attack that ends next for each row."""
        needed = self._needed(batch.index, batch.step, self._standing)
        far = int(self._steps.max()) + 1
        return torch.where(needed, self._steps[:, None], far).argmin(0)

    def _filled(self) -> _Batch:
        """The batch, refilled from the queue if enough of it is free."""
        batch = self._batch
        if len(batch.index) <= _REFILL_AT * self._batch_size and len(self._queue):
            new = self._queue[: self._batch_size - len(batch.index)]
            x, y = fetch(self._split, new.to(self._split.labels.device))
            start = ops.random_start_linf(
                x, self._eps, self._seed, new.to(x.device), restart=self.restart
            )
            fresh = _Batch(new, torch.full_like(new, -1), x, y, start)
            batch = batch.joined(fresh) if len(batch.index) else fresh
            self._batch, self._queue = batch, self._queue[len(new) :]
        return batch

    def _verdicts(self, batch: _Batch) -> Tensor:
        """bool [M, N], `standing` after the verdicts on the batch's iterates."""
        counts = (self._restarts > self.restart)[:, None] & self._standing[:, batch.index]
        ends = counts & (self._steps[:, None] == batch.step)
        classified = ends.any(0) | self._any
        rows = classified.nonzero()[:, 0]
        if not len(rows):
            return self._standing
        x_adv, y = batch.x_adv, batch.y
        if len(rows) < len(x_adv):
            on_device = rows.to(y.device)
            x_adv, y = x_adv[on_device], y[on_device]
        right = correct(self._judge.logits(x_adv), y).cpu()
        fooled = torch.zeros_like(classified)
        fooled[rows] = ~right
        falls = ends & fooled
        if self._any:
            falls = counts & fooled & (self._steps[:, None] >= batch.step)
        if self._keep is not None:
            for budget, read in zip(self.marks, ends | falls, strict=True):
                if read.any():
                    self._keep(budget.name, batch.index[read], batch.x_adv[read.to(y.device)])
        standing = self._standing.clone()
        standing[:, batch.index] &= ~falls
        return standing


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """bool [N], whether samples are classified as y; never if their logits hold a NaN."""
    # argmax of a row with a NaN is the NaN's place, which may be the label.
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)
