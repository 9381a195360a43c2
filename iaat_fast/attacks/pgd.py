"""PGD in the L-infinity norm; every sample may have its own radius and step size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from iaat_fast.attacks.active_set import RunState, as_column, run_active
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.call import Call, pin_
from iaat_fast.attacks.options import PGDOptions, StepSize
from iaat_fast.attacks.recorder import Recording
from iaat_fast.attacks.targets import random_targets, target_draws


class PGD(Attack):
    """Projected gradient descent on the cross-entropy or another loss, from a random point of the ball.

        pgd = PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)
        x_adv = pgd(x, y)
        x_adv = pgd(x, y, eps=radii)              # a radius per sample, [N]; [K*N]: K candidates each
        x_adv = pgd(x, y, start=x_start)          # a given start instead of the random one

    In float32 the iterates are bit for bit those of the plain PyTorch loop from the same start, except for samples
    whose loss saturates (p_y >= 1 - 2**-12): there the plain gradient has lost its bits, and `ops.ce_cotangent`
    restores them. A call leaves the model's mode, gradients and buffers as they were (but see `bn`), and nothing in the
    loop waits for the device.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C], C >= 2, and does its own normalisation. For a function
            (a bound method, a partial, a closure) the modules found in it are put in the attack's mode and restored.
            DistributedDataParallel wrappers are bypassed; modules spread over ranks (FSDP, tensor parallel) are
            refused, since ranks may take different numbers of forwards.
        eps: radius on the scale of the images, at most hi - lo, a float or a tensor [N]; see also `lo`.
        alpha: step size, a float, a tensor [N], or a function of the radii such as `scaled_step(steps)`.
        steps: number of gradient steps; 0 takes none and gives the start, a random point or x itself, with a warning.
        restarts: number of runs from independent random starts. A sample that is fooled keeps its first adversarial
            example, and later restarts leave it out; one that is never fooled keeps the result of largest loss.
        random_start: start uniformly in the ball instead of at x.
        clamp_start: clamp the random start to [lo, hi] (IAAT's released code does not).
        targeted: False: no target. True: y is the target, and predicting it is a success. In all other cases y is the
            true class, any other prediction is a success, and the target is chosen once per call, "random": uniformly
            from the other classes; "least-likely": the other class with the smallest logit at x (in both, logits of
            -infinity exclude a class); or by a function of the logits [N, C] at x and of y that returns int64 [N].
        lo, hi: range of the pixels, numbers; or one for each channel of images [N, C, H, W], sequences or tensors [C]
            or [C, 1, 1], for a model over normalised images. A plain radius would then have two meanings, so that eps
            and alpha are given per channel too, [C, 1, 1] or [N, C, 1, 1], as the same share of hi - lo in each:

                lo, hi = (0 - mean) / std, (1 - mean) / std     # [3, 1, 1] each
                PGD(model, eps=8 / 255 * (hi - lo), alpha=2 / 255 * (hi - lo), steps=10, lo=lo, hi=hi)

            A function alpha maps shares to shares, and distances and step sizes in results are shares. The images that
            come back are within [lo, hi], and within the radii up to a rounding of the last place; pixels that the
            attack does not move keep their bits. The model sees the others rounded as images in [0, 1] of their dtype
            would be, which is coarse in half types; the verdicts of `run` are on the images that it returns.
        bn: BatchNorm's mode during the attack: "eval"; "train": batch statistics, buffers restored; "train_update":
            batch statistics that also update the running ones (IAAT's released code). Traced, frozen and exported
            models allow only "eval". SyncBatchNorm on batch statistics needs as many forwards on every rank.
        precision: of the gradients: "fp32"; "tf32"; "bf16" or "fp16", from a copy of the model; "auto", by hardware.
            Whether a sample is fooled, for restarts and `early_stop`, is always decided by the live model.
        engine: where gradients come from. "exact": the arithmetic of the plain loop, even where cross-entropy
            saturates. "fast": a frozen copy with BatchNorm folded, channels last; float32 results differ by rounding.
            `EngineOptions`: chosen options. "auto": in fp32, "exact" except at saturation; in other precisions, "fast".
        early_stop: keep, for every sample, the first iterate that fools the model instead of the last iterate.
        seed: of the random start and targets, the same in every call; None draws one per call from torch's generator.
        loss: "ce", cross-entropy; "cw", the margin of Carlini and Wagner 2017; "dlr", the difference of logits ratio of
            Croce and Hein 2020, which needs 3 classes, or 4 with targets (if logits of -infinity leave a sample fewer,
            it is attacked by the margin, with a RuntimeWarning); "kl", the divergence from the prediction at x of Zhang
            et al. 2019 (TRADES), which has no targets, and no gradient at x: it needs a random or given start.
        eot: draws of a randomised model (expectation over transformation, Athalye et al. 2018): a gradient is the mean
            of those of as many forwards, and a verdict that of the mean of as many predicted probabilities. Forwards
            run one after the other, on random numbers of torch's generator, which `seed` does not set.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Madry et al. 2018, Section 2.1; PGD_k of IAAT's Algorithms 1 and 2.
    """

    _passes = 1  # gradients that a step takes

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        random_start: bool = True,
        **options: Unpack[PGDOptions],
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start=random_start, **options)

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        run = self._begin(call, x_adv, rows)
        if self.early_stop:
            return self._run_to_first(call, run)
        if self.network.captures(x_adv) and self.network.classes is not None:
            self._replay(call, run, self.network.classes)
        else:
            for _ in range(self.steps):
                self._step(call, run)
            self._see_last(call, run, lambda logits: self._goal(call, logits, run.rows))
        if rows is None:
            return x_adv, run.y, run.eps
        return x_adv, *self._verdict(call, x_adv, run.y)

    def _run_to_first(self, call: Call, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """As `_run_once`, keeping every row's first iterate that fools the model; such rows leave the batch."""

        def step(state: _Search, number: int) -> None:
            before = state.x_adv.clone()
            logits = self._step(call, state)
            fooled = self._fooled(logits, state.y) & ~state.found
            fooled = self._confirmed(before, state.y, fooled)
            state.kept = torch.where(as_column(fooled, before), before, state.kept)
            state.found = state.found | fooled

        nothing_found = torch.zeros(len(run.y), dtype=torch.bool, device=run.y.device)
        state = _Search(found=nothing_found, kept=run.x_adv.clone(), **vars(run))
        state = run_active(state, step, self.steps, shrinks=not call.coupled, passes=call.passes)
        x_adv = torch.where(as_column(state.found, state.kept), state.kept, state.x_adv)
        self._see_last(call, state, lambda logits: self._goal(call, logits, state.rows))
        fooled, loss = self._verdict(call, x_adv, state.y)
        return x_adv, self._ended(state.found, fooled), loss

    def _replay(self, call: Call, run: Run, classes: int) -> None:
        """All steps, in place, by replaying a CUDA graph if one has been captured."""
        n = len(call.y)
        # An eager run of the same call, before the number of classes was known, has chosen the targets.
        random = self.targeted == "random" and call.goal is None
        goal = call.safe_classes(call.y, classes) if call.goal is None else call.goal
        goals = [goal, target_draws(call.stream, call.index)] if random else [goal]
        if run.rows is not None:
            goals = [each[run.rows % n] for each in goals]

        def aim(logits: Tensor, y: Tensor, draws: Tensor) -> Tensor:
            # In every step: which classes are masked is only known from the logits, inside the graph.
            return random_targets(logits[: len(y)], y, draws)

        written = [name for name in run.written if getattr(run, name) is not None]
        recorded = () if call.trace is None else call.trace.current.tensors
        optional = ("mask", "rows", "y") if recorded else ("mask",)
        read = [name for name in optional if getattr(run, name) is not None]
        names = [*written, "x", "eps", "alpha", *read]

        def goal_of(logits: Tensor, goals: Sequence[Tensor]) -> Tensor:
            return aim(logits, *goals) if random else goals[0]

        def step(tensors: Sequence[Tensor]) -> None:
            held = iter(tensors)
            stats = next(held)
            recording = Recording(*(next(held) for _ in recorded)) if recorded else None
            now = dataclasses.replace(run, **{name: next(held) for name in names})
            rest = list(held)
            cotangent = self._aimed(now, lambda logits: goal_of(logits, rest), recording)
            self._advance(now, cotangent, stats)
            pin_(now.x_adv, now.x, now.mask)

        tensors = [call.stats, *recorded, *(getattr(run, name) for name in names), *goals]
        key = (*self._rule(), self.loss, run.mask is None, call.trace is None)
        changed = 1 + len(recorded) + len(written)
        self.network.replay(key, tensors, step, self.steps, written=changed)
        self._see_last(call, run, lambda logits: goal_of(logits, goals))
        passes = self._passes * self.network.eot
        call.count(run.x_adv, self.steps, passes=passes)
        if call.passes is not None:
            call.passes.add(len(run.x_adv), backward=True, times=self.steps * passes)

    def _step(self, call: Call, run: Run) -> Tensor:
        """One step, in place; returns the logits it started from."""
        seen = run.x_adv  # replaced by the logits below

        def goal_of(logits: Tensor) -> Tensor:
            nonlocal seen
            seen = logits
            return self._goal(call, logits, run.rows)

        recording = None if call.trace is None else call.trace.current
        self._advance(run, self._aimed(run, goal_of, recording), call.stats)
        pin_(run.x_adv, run.x, run.mask)
        call.count(run.x_adv, passes=self._passes * self.network.eot)
        return seen

    def _aimed(
        self, run: Run, goal_of: Callable[[Tensor], Tensor], recording: Recording | None
    ) -> Callable[[Tensor], Tensor]:
        """The cotangent of a step towards the goal for its logits, which records those of the step's first gradient."""
        left = 0 if recording is None else self.network.cotangents

        def cotangent(logits: Tensor) -> Tensor:
            nonlocal left
            goal = goal_of(logits)
            left -= 1
            if left == 0 and recording is not None:
                self._record_run(recording, run, logits, goal)
            return self._cotangent(logits, goal)

        return cotangent

    def _see_last(self, call: Call, run: Run, goal_of: Callable[[Tensor], Tensor]) -> None:
        """Have the last iterates, at which no gradient is taken, recorded by the verdict on them."""
        if call.trace is not None:
            recording = call.trace.current
            call.trace.see_last = lambda logits: self._record_run(
                recording, run, logits, goal_of(logits)
            )

    def _record_run(self, recording: Recording, run: Run, logits: Tensor, goal: Tensor) -> None:
        self._record(recording, logits, goal, run.y, run.alpha, rows=run.rows, done=run.done)

    @property
    def _iterates(self) -> int:
        return self.steps + 1

    def _advance(self, run: Run, cotangent: Callable[[Tensor], Tensor], stats: Tensor) -> None:
        """One step of a run, in place, along the sign of the gradient; zeros and NaNs are added to stats, int64 [2]."""
        box = self._rule()
        self.network.step_(run.x_adv, cotangent, run.x, run.eps, run.alpha, *box, stats)

    def _begin(self, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        return Run.begin(call, x_adv, rows)

    def _rule(self) -> tuple[float, float, bool]:
        return self._lo, self._hi, self._descends


@dataclasses.dataclass
class Run:
    """The n rows of one run.

    x_adv: iterates [n, ...], changed in place.
    x: ball centres [n, ...], or [N, ...] if rows is None.
    y: int64, classes, as many as centres.
    eps, alpha: radii and step sizes [n].
    rows: int64 [n], the rows of the call that these are; None for all.
    mask: bool [n, ...], where x_adv may change; None everywhere.
    momentum, variance, draws: changed in place; those of MI-FGSM and of VMI-FGSM [n, ...], and int64 [n, 4] for random
        steps (`transfer.py`); None for other attacks.
    written: names of the fields that steps change in place.
    """

    written: ClassVar[tuple[str, ...]] = ("x_adv", "momentum", "variance", "draws")
    x_adv: Tensor
    x: Tensor
    y: Tensor
    eps: Tensor
    alpha: Tensor
    rows: Tensor | None
    momentum: Tensor | None = None
    variance: Tensor | None = None
    draws: Tensor | None = None
    mask: Tensor | None = None

    @property
    def done(self) -> Tensor | None:
        """bool [n], rows that are not attacked any more; None if all are."""
        return None

    @classmethod
    def begin(cls, call: Call, x_adv: Tensor, rows: Tensor | None) -> Run:
        if rows is None and call.mask is None:  # all candidates share x
            return cls(x_adv, call.x, call.y, call.eps, call.alpha, None)
        rows = torch.arange(call.rows, device=x_adv.device) if rows is None else rows
        sample = rows % len(call.y)
        return cls(
            x_adv,
            call.x[sample],
            call.y[sample],
            call.eps[rows],
            call.alpha[rows],
            rows,
            mask=call.mask_of(rows),
        )


@dataclasses.dataclass(kw_only=True)
class _Search(Run, RunState):
    """A run that stops early; kept: for rows that are found, their first iterates that fool the model."""

    results = ("found", "kept", "x_adv")
    kept: Tensor

    @property
    def done(self) -> Tensor:
        return self.found
