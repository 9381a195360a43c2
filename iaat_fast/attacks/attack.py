"""The base class of all attacks: constructor arguments, one call with its checks, restarts, and verdicts."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import validate
from iaat_fast.attacks import losses, options
from iaat_fast.attacks.active_set import WorstCase
from iaat_fast.attacks.call import AttackStats, Call, pin_, prepare_call
from iaat_fast.attacks.findings import Findings, Stale
from iaat_fast.attacks.model.mode import BN_MODES, attacked
from iaat_fast.attacks.network import Network
from iaat_fast.attacks.options import EngineOptions, StepSize, Targeting
from iaat_fast.attacks.passes import PassCounter, among
from iaat_fast.attacks.result import AttackResult, first_radius, no_samples, over_radii
from iaat_fast.attacks.targets import (
    chosen_by,
    least_likely,
    likely_targets,
    random_targets,
    target_draws,
)
from iaat_fast.ops import checks
from iaat_fast.ops.layout import memory_format

# The registered op, without the public function's checks: a call checks its arguments itself.
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default

_T = TypeVar("_T")


class Attack:
    """Base of the L-infinity attacks. A subclass implements `_run_once`, one run from given start images.

    Args: as `PGD`'s, except that alpha is None for an attack that finds its own step sizes.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.
    """

    __signature__: ClassVar[inspect.Signature]

    _draws = False  # whether steps are random, so that restarts differ even without a random start

    def __init_subclass__(cls) -> None:
        """Make `inspect.signature` and `help` list the keywords shared by all attacks."""
        super().__init_subclass__()
        cls.__signature__ = options.full_signature(cls.__init__, Attack.__init__)

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        options.refuse_unknown(cls, keywords)
        return super().__new__(cls)

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor,
        alpha: StepSize | None,
        steps: int,
        *,
        restarts: int = 1,
        random_start: bool = True,
        clamp_start: bool = True,
        targeted: Targeting = False,
        lo: float = 0.0,
        hi: float = 1.0,
        bn: str = "eval",
        precision: str = "fp32",
        engine: str | EngineOptions = "auto",
        early_stop: bool = False,
        seed: int | None = None,
        loss: str = "ce",
    ) -> None:
        if isinstance(model, type):
            raise TypeError(f"model: the class {model.__name__}, expected an instance of it")
        if isinstance(model, torch.export.ExportedProgram):
            raise TypeError("model: an ExportedProgram, expected what its module() returns")
        if not callable(model):
            raise TypeError(f"model: {type(model).__name__}, expected a callable")
        validate.integer("steps", steps, 0)
        validate.integer("restarts", restarts, 1)
        if not callable(targeted):
            validate.choice("targeted", targeted, (False, True, "random", "least-likely"))
        validate.choice("bn", bn, BN_MODES)
        validate.choice("loss", loss, losses.LOSSES)
        if loss == "kl" and targeted is not False:
            raise ValueError(
                f"targeted: {targeted!r} with loss 'kl', expected False: it has no target"
            )
        if seed is not None:
            validate.int64("seed", seed)
        validate.box(lo, hi)
        validate.distance("eps", eps, lo, hi)
        if alpha is not None and not callable(alpha):
            validate.distance("alpha", alpha, lo, hi, positive=steps > 0)
        if restarts > 1 and not random_start and not self._draws:
            raise ValueError(f"restarts: {restarts} without random_start would all be the same")
        if steps == 0:
            warnings.warn(
                f"{type(self).__name__} of 0 steps takes no gradient and leaves images where it starts: at a random "
                "point of the ball, or at x",
                RuntimeWarning,
                stacklevel=3,
            )
        self.network = Network(model, bn=bn, precision=precision, engine=engine)
        self.model = self.network.model
        self.eps, self.alpha, self.steps = eps, alpha, steps
        self.restarts, self.random_start, self.clamp_start = restarts, random_start, clamp_start
        self.targeted, self.lo, self.hi, self.bn = targeted, lo, hi, bn
        self.early_stop, self.seed, self.loss = early_stop, seed, loss
        self.stats = AttackStats()

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        eps: float | Tensor | None = None,
        alpha: StepSize | None = None,
        start: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | Tensor | None = None,
        candidate: int = 0,
        restart: int = 0,
        mask: Tensor | None = None,
        findings: Findings | None = None,
    ) -> Tensor:
        """Make adversarial images for x.

        Args:
            x: images [N, ...] in [lo, hi], floating point. Values may lie outside by rounding errors.
            y: int64 [N], true classes, or targets where `targeted` is True.
            eps: radius for this call, a float or a tensor [N], at most hi - lo; a tensor [K*N] asks for K candidates
                per sample.
            alpha: step size for this call, a float, a tensor like eps or [N], or a function of the radii.
            start: images [N, ...] or [K*N, ...] at which the first gradient is taken.
            index: int64 [N], the samples' numbers in their data set: a sample's noise depends on its number, not on its
                place in the batch; default 0 ... N-1.
            seed: for this call, an int, or an int64 tensor [] or [1] on the device of x.
            candidate: number of the first candidate; another number draws other noise from the same seed.
            restart: number of the first restart; another number draws other noise from the same seed.
            mask: bool, of any shape that broadcasts to x's: pixels where it is False keep their values in all images
                that the attack looks at. A patch, and a border of 2 pixels, for images [N, C, H, W]:

                    patch = torch.zeros(32, 32, dtype=torch.bool)           # of all images; [N, 1, 32, 32]: of each
                    patch[:8, :8] = True
                    border = torch.ones(32, 32, dtype=torch.bool)
                    border[2:-2, 2:-2] = False
                    x_adv = pgd(x, y, eps=1.0, mask=patch)

                It restricts gradients, too, where an attack compares or adds their sizes.
            findings: collects counts of zero and NaN gradient entries, and on a GPU also invalid values, so that the
                caller reads them later. None: the call reads them itself before it returns.

        Returns:
            [K*N, ...] in the dtype, device and memory format of x; row k*N + i is candidate k of sample i. `self.stats`
            then holds this call's counts, and a RuntimeWarning says if its gradients were mostly 0 or partly NaN. With
            findings there is no warning, and the zero and NaN entries are counted in the findings, not in `stats`.

        Waiting for the GPU: a call without findings waits once, at its end. Values of arguments and weights are checked
        on the device while the attack runs, and an error is raised at the end instead of a result. With findings
        nothing waits, and the call may be captured in a CUDA graph, if one call with this model and shape was made
        before the capture (a new copy of the model is first compared with the model). Two kinds of calls check values
        before they start: those that wait anyway (`restarts`, `early_stop`, the attacks that drop samples from the
        batch, `APGDT`, `DeepFool`, `FABT` and `Square`, and `APGD` on a copy); and, without findings, those that change
        the model (`bn="train_update"`).

        Threads: calls on one model, or on models that share a module, run one after the other; on a GPU they must use
        one stream. `stats` is then that of the call that ended last.

        A call that finds its copy of the model, or its captured steps, out of date is repeated with the live model; on
        a GPU, a call with findings records this in them instead. Autocast is off inside a call, and inference mode,
        no_grad and the default dtype have no effect on it.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """

        def made(call: Call) -> Tensor:
            return self._attack(call).contiguous(memory_format=memory_format(x))

        x_adv, stats = self._answer(
            x,
            y,
            made,
            eps=self.eps if eps is None else eps,
            alpha=alpha,
            start=start,
            index=index,
            seed=seed,
            candidate=candidate,
            restart=restart,
            mask=mask,
            findings=findings,
        )
        if findings is None:
            stats.warn(zeros=self._moves_everywhere)
        return x.detach().clone() if x_adv is None else x_adv

    def run(
        self,
        x: Tensor,
        y: Tensor,
        epsilons: float | Tensor | Sequence[float | Tensor] | None = None,
        *,
        alpha: StepSize | None = None,
        start: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
        restart: int = 0,
        mask: Tensor | None = None,
    ) -> AttackResult:
        """Adversarial images for x with their verdicts, distances and costs, at one radius or at several.

        A sample that the model misclassifies (with `targeted=True`: classifies as its target) without an attack is a
        success with x_adv = x, and is not attacked, as in AutoAttack. The others get the images of
        `attack(x, y, eps=...)`. Radii are attacked in ascending order. A sample that is fooled at one of them is not
        attacked at larger ones, but keeps its image, which lies in those balls too. So `success` never decreases with
        the radius, and only samples that no smaller radius has fooled get the images of a separate call.

        Args:
            x, y, alpha, start, index, restart, mask: as for a call. A function alpha is applied to each radius.
            epsilons: a list of E radii in any order, floats or tensors [N], for results [E, N, ...] in the order of the
                list; or one float or tensor [N], for results [N, ...]. None: the attack's radius.
            seed: for this call, the same random numbers for every radius. None: the attack's seed, else one is drawn.

        Returns:
            `AttackResult`. Verdicts are the live model's, with BatchNorm in the attack's mode, but without updating its
            running statistics. `self.stats` counts all radii together.

        It waits for the device before each radius and at the end.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        checks.images("x", x)
        n, layout = len(x), memory_format(x)
        radii, several = self._radii(epsilons, x)
        if start is not None:
            checks.same_images("start", start, "x", x, candidates=False)
        if isinstance(alpha, Tensor) and alpha.dim() and alpha.shape != (n,):
            raise ValueError(f"alpha: shape {tuple(alpha.shape)}, expected a float or [{n}]")
        order = torch.zeros(1, n, dtype=torch.int64, device=x.device)
        if several:
            radii, order = radii.sort(dim=0, stable=True)
            radii = radii.flatten()

        def made(call: Call) -> AttackResult:
            return over_radii(call, order, layout, self._attack, self._judge)

        result, stats = self._answer(
            x,
            y,
            made,
            eps=radii,
            alpha=alpha,
            start=start,
            index=index,
            seed=seed,
            candidate=0,
            restart=restart,
            mask=mask,
            findings=None,
            passes=PassCounter(n, x.device),
        )
        stats.warn(zeros=self._moves_everywhere)
        if result is None:
            result = no_samples(x, len(order))
        return result if several else first_radius(result)

    def __repr__(self) -> str:
        """The class and its options: positional ones, and keywords that differ from their defaults."""
        return options.described(self)

    def _radii(
        self, epsilons: float | Tensor | Sequence[float | Tensor] | None, x: Tensor
    ) -> tuple[Any, bool]:
        """The radii of a run, and whether `epsilons` was a list, which gives a tensor [E, N]."""
        if epsilons is None:
            return self.eps, False
        if isinstance(epsilons, (int, float)) or (
            isinstance(epsilons, Tensor) and epsilons.dim() < 2
        ):
            validate.distance("epsilons", epsilons, self.lo, self.hi)
            return checks.per_row("epsilons", epsilons, len(x), x) if isinstance(
                epsilons, Tensor
            ) else epsilons, False
        try:
            every = list(epsilons)
        except TypeError:
            raise TypeError(
                f"epsilons: {type(epsilons).__name__}, expected a float, a Tensor, a list of them or None"
            ) from None
        if not every:
            raise ValueError("epsilons: empty, expected at least one radius")
        for place, eps in enumerate(every):
            validate.distance(f"epsilons[{place}]", eps, self.lo, self.hi)
        rows = [checks.per_row(f"epsilons[{e}]", eps, len(x), x) for e, eps in enumerate(every)]
        return torch.stack(rows), True

    def _answer(
        self,
        x: Tensor,
        y: Tensor,
        work: Callable[[Call], _T],
        *,
        eps: float | Tensor,
        alpha: StepSize | None,
        start: Tensor | None,
        seed: int | Tensor | None,
        findings: Findings | None,
        **others: Any,
    ) -> tuple[_T | None, AttackStats]:
        """The result of `work` on a call with these arguments, None if it has no rows; and the call's stats.

        Repeats the work with the live model if the model's copy is out of date. Also sets `self.stats`.
        """
        if self.alpha is None and alpha is not None:
            raise TypeError(f"alpha: given, but {type(self).__name__} finds its own step sizes")
        # Gradients are needed even if the caller, a validation loop for example, has switched them off.
        with torch.inference_mode(False), torch.enable_grad():
            if start is not None and self.restarts > 1:
                raise ValueError(
                    f"start: given, but {self.restarts} restarts would all begin there"
                )
            if start is None and self.loss == "kl" and not self.random_start:
                raise ValueError("start: None, but without random_start the gradient of 'kl' is 0")
            arguments: dict[str, Any] = {
                "eps": eps,
                "alpha": self.alpha if alpha is None else alpha,
                "start": start,
                "findings": findings,
                "box": (self.lo, self.hi),
                "moves": self.steps > 0,
                "coupled": self.network.couples_samples(),
                **others,
            }
            call = prepare_call(x, y, seed=self.seed if seed is None else seed, **arguments)
            if call.rows == 0:
                self.stats = AttackStats()
                return None, self.stats
            counted = call.stats.clone()
            try:
                made, zero, nan = self._run_call(call, work, own=findings is None)
            except Stale as stale:
                if findings is not None and not findings.heard_at_once:
                    raise  # found by an earlier call with the same findings
                self.network.give_up_copy(str(stale))
                call.stats.copy_(counted)
                call = prepare_call(x, y, seed=call.stream[0], **arguments)
                made, zero, nan = self._run_call(call, work, own=findings is None)
        # Also returned, because another thread may replace self.stats.
        self.stats = stats = AttackStats(
            total=call.entries,
            zero=zero,
            nan=nan,
            gradients=call.gradients,
            planned=call.planned,
        )
        if findings is not None:
            findings.entries += call.entries
        return made, stats

    def with_steps(self, steps: int, alpha: StepSize | None) -> Self:
        """The same attack with another number of steps and step size; it shares this attack's copy of the model.

        Args:
            steps, alpha: as `PGD`'s; alpha is None for an attack that finds its own step sizes.

        Raises:
            TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.
        """
        validate.integer("steps", steps, 0)
        if alpha is not None and not callable(alpha):
            validate.distance("alpha", alpha, self.lo, self.hi, positive=steps > 0)
        twin = copy.copy(self)
        twin.steps, twin.alpha, twin.stats = steps, alpha, AttackStats()
        return twin

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, C] for x in the attack's BatchNorm mode, without gradients or the caller's autocast."""
        with self.network.in_mode(), torch.no_grad():
            return self.network.logits(x)

    def _run_call(
        self, call: Call, work: Callable[[Call], _T], *, own: bool
    ) -> tuple[_T, int, int]:
        """Run `work` on a checked call.

        Args:
            own: whether the findings belong to this call, which then reads them at its end.

        Returns:
            The result of `work`, and the numbers of zero and NaN gradient entries, both 0 unless `own`.

        Raises:
            Stale: the gradients came from a copy that no longer matches the live model.
        """
        call.planned = gradients = call.rows * self.steps * self.restarts
        if call.passes is not None:
            call.passes.take()  # forget those of an attempt with an outdated copy
        with self.network.attacked(call.x, call.findings, call.passes):
            if self._waits_for_device() or (self.bn == "train_update" and own):
                call.findings.look()
            call.x = self.network.to_channels_last(call.x)
            self._aim(call)
            made = work(call)
            self.network.compare_copy(call.x, call.findings, gradients)
        zero, nan = call.findings.look() if own else (0, 0)
        return made, zero, nan

    def _aim(self, call: Call) -> None:
        """Choose the goal of a call where that takes the logits at x; else it is chosen at the first gradient."""
        if self.loss == "kl":
            call.goal = self._prediction(call)
        elif self.targeted == "least-likely" or callable(self.targeted):
            with torch.no_grad():
                logits = self.network.logits(call.x)
            call.y = call.safe_classes(call.y, logits.shape[1])
            call.goal = self._target(call, logits)
            self._look_at_masks(call, logits)

    def _target(self, call: Call, logits: Tensor) -> Tensor:
        """int64 [N], the class that a targeted attack descends to, for logits [N, C]."""
        if callable(self.targeted):
            return chosen_by(self.targeted, logits, call.y)
        if self.targeted == "least-likely":
            return least_likely(logits, call.y)
        if self.targeted == "random":
            return random_targets(logits, call.y, target_draws(call.stream, call.index))
        return call.y

    def _targets(self, call: Call, logits: Tensor, most: int) -> Tensor:
        """int64 [N, T], the targets that are tried in turn: the one, else up to `most` of the likely wrong classes."""
        if self.targeted is False:
            return likely_targets(logits, call.y, most)
        return self._target(call, logits).unsqueeze(1)

    @property
    def _moves_everywhere(self) -> bool:
        """Not where the true class has come down to the third place of a DLR: a success, and a gradient of 0."""
        return self.loss != "dlr" or self._descends

    @property
    def _descends(self) -> bool:
        """Whether the loss is that of a target."""
        return self.targeted is not False

    def _attack(self, call: Call) -> Tensor:
        """All restarts; the worst case per sample."""
        if self.restarts == 1 and not self.early_stop:
            return self._run_once(call, self._masked_start(call, restart=0), None)[0]
        worst = WorstCase(call)
        self._run_restarts(call, worst, range(self.restarts))
        return worst.images

    def _run_restarts(self, call: Call, worst: WorstCase, restarts: range) -> None:
        """Run these restarts, by number, on the rows that are not fooled yet; the number decides a restart's noise."""
        for restart in restarts:
            rows = worst.rows()
            if not len(rows):
                break
            start = self._masked_start(call, restart)[rows]
            with among(call.passes, rows):
                worst.take(rows, *self._run_once(call, start, rows))

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
        lo, hi = (self.lo, self.hi) if self.clamp_start else (-torch.inf, torch.inf)
        call.begin_restart(restart)
        return _random_start_linf(call.x, call.eps, call.stream, call.index, lo, hi)

    def _prediction(self, call: Call) -> Tensor:
        """Log-probabilities [N, C] at x, from the source of the gradients, so that the divergence at x is exactly 0."""
        log_p = self.network.predict(call.x).log_softmax(1)
        call.safe_classes(call.y, log_p.shape[1])  # only to check y: "kl" does not index by class
        return log_p

    def _goal(self, call: Call, logits: Tensor, rows: Tensor | None) -> Tensor:
        """The `goal` of the loss (see `losses.py`) for some rows, or for one candidate of all samples if rows is None.

        Args:
            logits: [n, C], of all rows of the call if it has no goal yet.
        """
        if call.goal is None:
            y = call.safe_classes(call.y, logits.shape[1])
            if self.targeted == "random":
                draws = target_draws(call.stream, call.index)
                call.goal = random_targets(logits[: len(y)], y, draws)
            else:
                call.goal = y
            self._look_at_masks(call, logits)
        return call.goal if rows is None else call.goal[rows % len(call.y)]

    def _look_at_masks(self, call: Call, logits: Tensor) -> None:
        """Record in the findings whether logits of -infinity leave a sample too few classes for the loss "dlr"."""
        if self.loss == "dlr":
            last = losses.last_of_dlr(logits, targeted=self._descends)
            call.findings.look_at_dlr(last)

    def _cotangent(self, logits: Tensor, goal: Tensor, source: Tensor | None = None) -> Tensor:
        return losses.cotangent(
            self.loss,
            logits,
            goal,
            targeted=self._descends,
            source=source,
            # False with batch statistics: every sample's loss then reaches every image, and must not be rescaled.
            saturation_proof=self.network.saturation_proof,
        )

    def _lead_gradient(
        self, call: Call, x_adv: Tensor, target: Tensor, y: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits [n, C] at x_adv, and the gradient of the `lead` in them, 0 where the mask is False."""

        def cotangent(logits: Tensor) -> Tensor:
            one = logits.new_ones(len(logits), 1)
            ahead = torch.zeros_like(logits).scatter_(1, target.view(-1, 1), one)
            return ahead.scatter_(1, _rival(logits, target, y), -one)

        logits, grad = self.network.input_vjp(x_adv, cotangent)
        call.count(grad)
        call.stats += torch.stack([(grad == 0).sum(), grad.isnan().sum()])
        return logits, grad if mask is None else torch.where(mask, grad, 0.0)

    def _verdict(self, call: Call, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Whether images fool the live model, bool [n], and the loss [n] by which the worst of the others is chosen."""
        with torch.no_grad():
            logits = self.network.logits(x_adv)
            y = call.safe_classes(y, logits.shape[1])
            loss = F.cross_entropy(logits.float(), y, reduction="none")
        return self._fooled(logits, y), -loss if self.targeted is True else loss

    def _confirmed(self, images: Tensor, y: Tensor, fooled: Tensor) -> Tensor:
        """`fooled` (bool [n], by the source of the gradients) restricted to images that fool the live model too."""
        if not self.network.is_shadowed:
            return fooled
        rows = fooled.nonzero()[:, 0]
        if len(rows):
            with torch.no_grad():
                with among(self.network.passes, rows):
                    logits = self.network.logits(images[rows])
                fooled[rows] = self._fooled(logits, y[rows])
        return fooled

    def _judge(self, call: Call, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """By the live model: the predictions for images, and whether the attack has succeeded there."""
        # A verdict updates no running statistics.
        quiet = self.bn == "train_update"
        with torch.no_grad(), attacked(self.model, "train") if quiet else contextlib.nullcontext():
            logits = self.network.logits(images)
        checks.logit_values(logits)
        y = call.safe_classes(y, logits.shape[1])
        return logits.argmax(1), self._fooled(logits, y)

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        right = logits.argmax(1) == y
        return right if self.targeted is True else ~right


def lead(logits: Tensor, target: Tensor, y: Tensor | None) -> Tensor:
    """[n], how far the target is ahead of the class y; with None, of the strongest other."""
    ahead = logits.gather(1, target.view(-1, 1)) - logits.gather(1, _rival(logits, target, y))
    return ahead[:, 0]


def _rival(logits: Tensor, target: Tensor, y: Tensor | None) -> Tensor:
    if y is not None:
        return y.view(-1, 1)
    return logits.scatter(1, target.view(-1, 1), -torch.inf).argmax(1, keepdim=True)
