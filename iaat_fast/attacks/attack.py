"""The base class of all attacks: constructor arguments, one call with its checks, and a run over radii."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import losses, options
from iaat_fast.attacks.call import AttackStats, Call, prepare_call
from iaat_fast.attacks.findings import Findings, Stale
from iaat_fast.attacks.model.mode import BN_MODES
from iaat_fast.attacks.network import Network
from iaat_fast.attacks.options import Bound, EngineOptions, StepSize, Targeting
from iaat_fast.attacks.passes import PassCounter
from iaat_fast.attacks.recorder import Recorder
from iaat_fast.attacks.restarts import Restarts
from iaat_fast.attacks.result import (
    AttackResult,
    first_radius,
    no_samples,
    over_radii,
    radii_of_run,
)
from iaat_fast.ops import checks
from iaat_fast.ops.layout import memory_format

_T = TypeVar("_T")


class Attack(Restarts):
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
        lo: Bound = 0.0,
        hi: Bound = 1.0,
        bn: str = "eval",
        precision: str = "fp32",
        engine: str | EngineOptions = "auto",
        early_stop: bool = False,
        seed: int | None = None,
        loss: str = "ce",
        eot: int = 1,
    ) -> None:
        if isinstance(model, type):
            raise TypeError(f"model: the class {model.__name__}, expected an instance of it")
        if isinstance(model, torch.export.ExportedProgram):
            raise TypeError("model: an ExportedProgram, expected what its module() returns")
        if not callable(model):
            raise TypeError(f"model: {type(model).__name__}, expected a callable")
        validate.integer("steps", steps, 0)
        validate.integer("restarts", restarts, 1)
        validate.integer("eot", eot, 1)
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
        self._set_box(lo, hi)
        self._check_distance("eps", eps)
        if alpha is not None:
            self._check_distance("alpha", alpha, positive=steps > 0)
        if restarts > 1 and not random_start and not self._draws:
            raise ValueError(f"restarts: {restarts} without random_start would all be the same")
        if steps == 0:
            warnings.warn(
                f"{type(self).__name__} of 0 steps takes no gradient and leaves images where it starts: at a random "
                "point of the ball, or at x",
                RuntimeWarning,
                stacklevel=3,
            )
        self.network = Network(
            model, bn=bn, precision=precision, engine=engine, eot=eot, box=self._channels
        )
        self.model = self.network.given
        self.eps, self.alpha, self.steps = eps, alpha, steps
        self.restarts, self.random_start, self.clamp_start = restarts, random_start, clamp_start
        self.targeted, self.bn = targeted, bn
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
                per sample. With `lo`, `hi` per channel a tensor [C, 1, 1], [N, C, 1, 1] or [K*N, C, 1, 1].
            alpha: step size for this call, a float, a tensor like eps or [N], or a function of the radii; with `lo`,
                `hi` per channel a tensor like eps, or the function.
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
            return self._images(call).contiguous(memory_format=memory_format(x))

        x_adv, stats = self._answer(
            x,
            y,
            made,
            eps=self._share("eps", self.eps if eps is None else eps, x),
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
        trace: bool = False,
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
                list; or one float or tensor [N], for results [N, ...]. With `lo`, `hi` per channel they are tensors
                [C, 1, 1] or [N, C, 1, 1]. None: the attack's radius.
            seed: for this call, the same random numbers for every radius. None: the attack's seed, else one is drawn.
            trace: keep loss, success and step size of every iteration, see `Trace`. They stay on the device, take no
                pass of their own, and change no image. `DeepFool` and `FABT` keep none.

        Returns:
            `AttackResult`. Verdicts are the live model's, with BatchNorm in the attack's mode, but without updating its
            running statistics. `self.stats` counts all radii together.

        It waits for the device before each radius and at the end.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        checks.images("x", x)
        n, layout = len(x), memory_format(x)
        radii: Any = self._share("eps", self.eps, x)
        several = False
        record = self._recorder_of(trace)
        if epsilons is not None:
            radii, several = radii_of_run(epsilons, x, self)
        if start is not None:
            checks.same_images("start", start, "x", x, candidates=False)
        self._check_rows("alpha", alpha, n, f"a float or [{n}]")
        order = torch.zeros(1, n, dtype=torch.int64, device=x.device)
        if several:
            radii, order = radii.sort(dim=0, stable=True)
            radii = radii.flatten()

        def made(call: Call) -> AttackResult:
            return over_radii(
                call, order, layout, self._images, self._judge, record, self._channels
            )

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
            result = no_samples(x, len(order), record)
        return result if several else first_radius(result)

    def _recorder_of(self, trace: bool) -> Callable[[Tensor], Recorder] | None:
        """What makes the recorder of samples, int64 [n]; None without a trace."""
        validate.choice("trace", trace, (False, True))
        if not trace:
            return None
        if self._iterates is None:
            raise ValueError(f"trace: True, but {type(self).__name__} keeps none, expected False")
        return functools.partial(Recorder, self._iterates, self._runs)

    def __repr__(self) -> str:
        """The class and its options: positional ones, and keywords that differ from their defaults."""
        return options.described(self)

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
            given = None
            if self._channels is not None:
                x, given = self._channels.scaled("x", x), x.detach()
                if start is not None:
                    checks.same_images("start", start, "x", x, candidates=True)
                    start = self._channels.scaled("start", start)
            arguments: dict[str, Any] = {
                "eps": eps,
                "alpha": self._share("alpha", self.alpha if alpha is None else alpha, x),
                "start": start,
                "findings": findings,
                "box": (self._lo, self._hi),
                "given": given,
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
        if alpha is not None:
            self._check_distance("alpha", alpha, positive=steps > 0)
        twin = copy.copy(self)
        twin.steps, twin.alpha, twin.stats = steps, alpha, AttackStats()
        return twin

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, C] for x in the attack's BatchNorm mode, without gradients or the caller's autocast.

        With `eot` > 1 they are log(mean of softmax) over as many draws, up to a constant per row.
        """
        with self.network.in_mode(), torch.no_grad():
            return self.network.logits_as_given(x)

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
        call.planned = gradients = call.rows * self.steps * self.restarts * self.network.eot
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
