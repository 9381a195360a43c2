"""PGD trajectories that several measurements share: each restart runs once and is read at its marks.

PGD has no memory: the iterate after 10 steps of a run of 1,000 is that of PGD-10 from the same start,
bit for bit. So measurements that differ only in steps and restarts read one trajectory per restart.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iaat_fast import ops
from iaat_fast.attacks import PGD, inputs
from iaat_fast.attacks.stats import AttackStats
from iaat_fast.data import Samples, fetch
from iaat_fast.evaluate.outlook import Economy, expected_passes
from iaat_fast.evaluate.slots import Slots, shares

STRETCH = 50
"""Steps taken at most before there is a chance to save."""

_FULL = 0.75  # share of the batch below which it is filled up: each time its newest rows cut the stretches short

Keep = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a measurement reads the trajectories.

    Args:
        name: of the measurement, unique.
        steps: steps of each restart.
        restarts: random starts.
    """

    name: str
    steps: int
    restarts: int


@dataclass
class Tally:
    """What one measurement has cost: its gradients, of `AttackStats`, and seconds."""

    gradients: AttackStats
    seconds: float = 0.0


class Trajectories:
    """The verdicts of all marks, each as PGD of its steps and restarts gives it by itself with this seed.

        run = Trajectories(model, split, marks, eps=8/255, alpha=2/255)
        while not run.finished:
            run.advance()
        run.standing(0)                     # bool [N], the first mark's verdicts

    Restarts run one after the other, over the whole split. In restart r a sample is carried on only as far as the last
    mark that has more than r restarts and that it still stands in. The batch is filled up, with samples at
    whatever step, as others leave it; a call of `advance` takes the steps to the nearest mark of a sample in the
    batch.

    Args:
        model: attacked, and asked for verdicts unless `judge` is given.
        split: the samples, on the model's device.
        marks: at least one.
        eps: radius, on the [0, 1] scale.
        alpha: step size, on the [0, 1] scale.
        targeted: False, or "random": the loss to a class drawn once per sample and seed is descended; robust is still
            who is classified correctly.
        batch_size: samples attacked at once.
        seed: of the random starts and targets.
        any_iterate: a sample falls at the first iterate, the start included, that fools the model, in every mark with
            as many steps; else by the iterate at the mark alone.
        judge: the model whose verdicts count, where it is not the one attacked; without any_iterate only.
        keep: called as keep(name, index, x_adv) with the images that a mark's verdicts were given on; those of a later
            call, for the same sample, replace the earlier.
        samples: numbers int64 [K] of those to attack; all by default. The others never stand.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Samples,
        marks: Sequence[Mark],
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
        if len(split) == 0:
            raise ValueError("split: empty, expected at least 1 sample")
        samples = torch.arange(len(split)) if samples is None else samples.cpu()
        if len(samples) == 0:
            raise ValueError("samples: empty, expected at least 1 number")
        if not marks:
            raise ValueError("marks: none given, expected at least 1")
        for mark in marks:
            inputs.whole_number("restarts", mark.restarts, at_least=1)
            inputs.whole_number("steps", mark.steps, at_least=0)
        inputs.whole_number("batch_size", batch_size, at_least=1)
        if judge is not None and any_iterate:
            raise ValueError(
                "any_iterate: the attack sees its own model's verdicts, not the judge's"
            )
        self.marks = tuple(marks)
        self._split, self._batch_size, self._seed, self._eps = split, batch_size, seed, eps
        self._any, self._keep = any_iterate, keep
        most = max(mark.steps for mark in marks)
        self._pgd = PGD(
            model, eps, alpha, most, seed=seed, targeted=targeted, early_stop=any_iterate
        )
        # Of the judge only the logits are asked for.
        self._judge = self._pgd if judge is None else PGD(judge, eps, alpha, most)
        self._steps = torch.tensor([mark.steps for mark in marks])
        self._restarts = torch.tensor([mark.restarts for mark in marks])
        self._standing = torch.zeros(len(marks), len(split), dtype=torch.bool)
        self._standing[:, samples] = True
        self._tallies = [
            Tally(AttackStats(planned=len(samples) * mark.steps * mark.restarts)) for mark in marks
        ]
        self._slots = Slots.none(split)
        self.restart, self._before, self._economy = 0, self._standing, Economy()
        self._queue = samples

    @property
    def finished(self) -> bool:
        """Whether all verdicts are known."""
        return all(map(self.is_known, range(len(self.marks))))

    def is_known(self, mark: int) -> bool:
        """Whether the verdicts of the mark of this number are final."""
        done = self.restart + self.restart_finished
        return done >= self.marks[mark].restarts or not bool(self._standing[mark].any())

    def standing(self, mark: int) -> Tensor:
        """bool [N] on the CPU, the verdicts of the mark of this number so far; True is robust."""
        return self._standing[mark].clone()

    def tally(self, mark: int) -> Tally:
        """What the mark of this number has cost: passes that served several are counted at the one of fewest steps."""
        return self._tallies[mark]

    @property
    def passes(self) -> int:
        """Gradients taken, one image each."""
        return sum(tally.gradients.gradients for tally in self._tallies)

    @property
    def passes_of_restart(self) -> int:
        """Those of the restart under way, up to the steps that samples were dropped within a stretch."""
        return self._economy.taken + int(self._slots.taken.sum())

    @property
    def restart_finished(self) -> bool:
        """Whether all samples are done with the restart under way."""
        return self.settled == len(self._split)

    @property
    def settled(self) -> int:
        """Samples that are done with the restart under way."""
        return len(self._split) - len(self._queue) - len(self._slots.index)

    def remaining(self) -> float:
        """Gradient passes still expected, one image each; see `outlook.expected_passes`."""
        if self.finished:
            return 0.0
        unsettled = torch.cat([self._queue, self._slots.index])
        left = (
            self._depths(self._queue).sum()
            + (self._depths(self._slots.index) - self._slots.taken).sum()
        )
        settled = torch.ones(len(self._split), dtype=torch.bool)
        settled[unsettled] = False
        return expected_passes(
            [(mark.steps, mark.restarts) for mark in self.marks],
            restart=self.restart,
            before=self._before,
            standing=self._standing,
            settled=settled,
            left=int(left),
            economy=self._economy,
        )

    def advance(self, most: int = STRETCH) -> None:
        """Take all samples in the batch to the nearest mark of one of them, `most` steps ahead at most."""
        started = time.perf_counter()
        if self.restart_finished:
            self._begin(self.restart + 1)
        slots = self._filled()
        marks = self._next_marks(slots)
        steps = min(most, int((self._steps[marks] - slots.taken).min()))
        self._pgd.steps = steps
        index = slots.index.to(slots.x.device)
        with warnings.catch_warnings():
            # Said once, with the totals, instead of once a batch.
            warnings.filterwarnings("ignore", r".*gradient entries are", RuntimeWarning)
            x_adv = self._pgd(slots.x, slots.y, start=slots.x_adv, index=index)
        slots = Slots(slots.index, slots.taken + steps, slots.x, slots.y, x_adv)
        standing = self._judged(slots)
        stays = self._needed(slots.index, slots.step, standing).any(0)
        # Only now is anything changed: an error or an interrupt above leaves all as it was.
        self._standing = standing
        self._charge(marks, steps, time.perf_counter() - started)
        self._economy = self._economy.with_left(
            slots.step[~stays], self._depths(slots.index)[~stays]
        )
        self._slots = slots.only(stays)

    def warn(self) -> None:
        """Warn where the gradients of a mark were NaN or mostly zero, see `AttackStats`."""
        total = self._tallies[0].gradients
        for tally in self._tallies[1:]:
            total = total.plus(tally.gradients)
        total.warn()

    def state(self) -> dict[str, Any]:
        """All of it, as tensors and plain values; what comes later changes none of them."""
        return {
            "restart": self.restart,
            "queue": self._queue,
            "index": self._slots.index,
            "step": self._slots.step,
            "x_adv": self._slots.x_adv.cpu(),
            "standing": self._standing,
            "before": self._before,
            "economy": list(self._economy),
            "tallies": [
                [g.total, g.zero, g.nan, g.gradients, tally.seconds]
                for tally in self._tallies
                for g in [tally.gradients]
            ],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, of the same marks and samples.

        Rows beyond a batch size that has become smaller begin their restart anew.

        Raises:
            ValueError: the state is of other marks or samples, or damaged.
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
            for tally, (*counts, seconds) in zip(self._tallies, state["tallies"], strict=True):
                names = ("total", "zero", "nan", "gradients")
                taken = AttackStats(**dict(zip(names, map(int, counts), strict=True)))
                tally.gradients, tally.seconds = tally.gradients.plus(taken), float(seconds)
            self.restart = int(state["restart"])
            self._standing, self._before = state["standing"], state["before"]
            self._economy = Economy(*state["economy"])
            self._slots = Slots(index[room], step[room], x, y, x_adv)
            self._queue = torch.cat([index[self._batch_size :], state["queue"]])
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"not the state of this attack ({error})") from error

    def _begin(self, restart: int) -> None:
        """Queue who is attacked in this restart, the deepest first: shallow ones together leave together."""
        self.restart, self._before, self._economy = restart, self._standing, Economy()
        everyone = torch.arange(len(self._split))
        depths = self._depths(everyone)
        # A sample that only a mark of 0 steps needs is at depth 0, and needed all the same.
        needed = self._needed(everyone, torch.full_like(everyone, -1), self._standing).any(0)
        order = depths.argsort(descending=True, stable=True)
        self._queue = order[needed[order]]

    def _needed(self, index: Tensor, step: Tensor, standing: Tensor) -> Tensor:
        """bool [M, n], the marks that samples still have before them in this restart."""
        ahead = self._steps[:, None] > step
        return standing[:, index] & ahead & (self._restarts > self.restart)[:, None]

    def _depths(self, index: Tensor) -> Tensor:
        """int64 [n], the steps that samples of this restart have to take, by what is known."""
        needed = self._needed(index, torch.full_like(index, -1), self._before)
        return torch.where(needed, self._steps[:, None], 0).amax(0)

    def _next_marks(self, slots: Slots) -> Tensor:
        """int64 [n], the number of each row's next mark."""
        needed = self._needed(slots.index, slots.step, self._standing)
        far = int(self._steps.max()) + 1
        return torch.where(needed, self._steps[:, None], far).argmin(0)

    def _filled(self) -> Slots:
        """The batch, filled up from the queue where it has room enough; from then on it is this restart's batch."""
        slots = self._slots
        if len(slots.index) <= _FULL * self._batch_size and len(self._queue):
            new = self._queue[: self._batch_size - len(slots.index)]
            x, y = fetch(self._split, new.to(self._split.labels.device))
            start = ops.random_start_linf(
                x, self._eps, self._seed, new.to(x.device), restart=self.restart
            )
            fresh = Slots(new, torch.full_like(new, -1), x, y, start)
            slots = slots.joined(fresh) if len(slots.index) else fresh
            self._slots, self._queue = slots, self._queue[len(new) :]
        return slots

    def _judged(self, slots: Slots) -> Tensor:
        """bool [M, N], what stands after the verdicts on the batch's iterates."""
        counts = (self._restarts > self.restart)[:, None] & self._standing[:, slots.index]
        here = counts & (self._steps[:, None] == slots.step)
        looked_at = here.any(0) | self._any
        rows = looked_at.nonzero()[:, 0]
        if not len(rows):
            return self._standing
        x_adv, y = slots.x_adv, slots.y
        if len(rows) < len(x_adv):
            on_device = rows.to(y.device)
            x_adv, y = x_adv[on_device], y[on_device]
        right = correct(self._judge.logits(x_adv), y).cpu()
        fallen = torch.zeros_like(looked_at)
        fallen[rows] = ~right
        falls = here & fallen
        if self._any:
            falls = counts & fallen & (self._steps[:, None] >= slots.step)
        if self._keep is not None:
            for mark, read in zip(self.marks, here | falls, strict=True):
                if read.any():
                    self._keep(mark.name, slots.index[read], slots.x_adv[read.to(y.device)])
        standing = self._standing.clone()
        standing[:, slots.index] &= ~falls
        return standing

    def _charge(self, marks: Tensor, steps: int, seconds: float) -> None:
        """Split what a call took among the marks its rows were on the way to, by their number."""
        rows = torch.bincount(marks, minlength=len(self.marks)).tolist()
        stats = self._pgd.stats
        parts = {
            name: shares(getattr(stats, name), rows)
            for name in ("total", "zero", "nan", "gradients")
        }
        for number, tally in enumerate(self._tallies):
            tally.gradients = tally.gradients.plus(
                AttackStats(**{name: part[number] for name, part in parts.items()})
            )
            tally.seconds += seconds * rows[number] / sum(rows)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """bool [N], whether samples are classified as y; logits that hold a NaN never are."""
    # argmax of a row with a NaN is the NaN's place, which would be right for some label.
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)
