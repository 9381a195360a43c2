"""What all attacks share: their arguments, the checks of a call, restarts, and the worst case per sample."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import validate
from iaat_fast.attacks import losses, options
from iaat_fast.attacks.active_set import WorstCase
from iaat_fast.attacks.call import AttackStats, Call, prepare_call
from iaat_fast.attacks.findings import Findings, Stale
from iaat_fast.attacks.model.mode import BN_MODES
from iaat_fast.attacks.network import Network
from iaat_fast.attacks.options import EngineOptions, StepSize
from iaat_fast.attacks.targets import random_targets, target_draws
from iaat_fast.ops.layout import memory_format

# The op itself, behind the checks of the public function: a call's arguments are checked once.
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default


class Attack:
    """Base of the L-infinity attacks. A subclass implements `_run_once`, one run from given starts.

    Args: as `PGD`'s; alpha is None for an attack that finds its own step sizes.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.
    """

    __signature__: ClassVar[inspect.Signature]

    _draws = False  # whether steps are random, so that restarts differ also without a random start

    def __init_subclass__(cls) -> None:
        """Let `inspect.signature` and `help` name the shared keywords too."""
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
        targeted: bool | Literal["random"] = False,
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
        validate.choice("targeted", targeted, (False, True, "random"))
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
        findings: Findings | None = None,
    ) -> Tensor:
        """Adversarial images for x.

        Args:
            x: images [N, ...] in [lo, hi], floating point. Values outside by no more than float noise are accepted.
            y: int64 [N], true classes, or targets where `targeted` is True.
            eps: radius of this call, a float or a tensor [N], at most hi - lo; a tensor [K*N] asks for K candidates
                per sample.
            alpha: step size of this call, a float, a tensor like eps or [N], or a function of the radii.
            start: images like x (or the [K*N, ...] of the result) where the first gradient is taken.
            index: int64 [N], numbers of the samples in their data set, which the noise follows; default 0 ... N-1.
            seed: of this call, an int, or an int64 tensor [] or [1] on the device of x.
            candidate: number of the first candidate; another number draws other noise from the same seed.
            restart: number of the first restart, likewise.
            findings: where zero and NaN entries of gradients, and on a GPU whatever is wrong with values, are left to
                be asked for later. None: the call asks itself.

        Returns:
            [K*N, ...] in the dtype, device and memory format of x; row k*N + i is candidate k of sample i. `self.stats`
            then counts the gradients' entries, and a RuntimeWarning says where they could not have found anything.
            With findings there is no warning, and `stats` has 0 for the zero and NaN entries, which are counted there.

        A GPU is waited for once, at the end. Values of arguments and weights are checked on the device while the attack
        runs; what is wrong with them is raised then, in place of the result. Given findings, nothing waits, and the
        call may be captured in a CUDA graph if an earlier one has been made outside of it, for a copy of the model is
        compared with it when it is made. Calls that wait on their way (`restarts`, `early_stop`, and attacks from
        whose batch samples leave: `APGDT`, `DeepFool`, `FABT`, `Square`; `APGD` on a copy) hear of bad values before
        they begin, findings given or not; so do those that leave marks on the model (`bn="train_update"`), where none
        are given.

        Calls from several threads on one model, or on models that share a module, are made one after the other, each
        as if it were alone; on a GPU they belong on one stream. `stats` is then that of the call that ended last.
        A call that finds its copy of the model, or its captured steps, to be out of date is made again with the live
        model; on a GPU one that is given findings leaves that to them. Autocast around a call is off in
        it, and inference mode, no_grad and the default dtype change nothing.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        if self.alpha is None and alpha is not None:
            raise TypeError(f"alpha: given, but {type(self).__name__} finds its own step sizes")
        # The loop needs gradients also where the caller, a validation loop for example, has switched them off.
        with torch.inference_mode(False), torch.enable_grad():
            if start is not None and self.restarts > 1:
                raise ValueError(
                    f"start: given, but {self.restarts} restarts would all begin there"
                )
            if start is None and self.loss == "kl" and not self.random_start:
                raise ValueError("start: None, but without random_start the gradient of 'kl' is 0")
            arguments: dict[str, Any] = {
                "eps": self.eps if eps is None else eps,
                "alpha": self.alpha if alpha is None else alpha,
                "start": start,
                "index": index,
                "candidate": candidate,
                "restart": restart,
                "findings": findings,
                "box": (self.lo, self.hi),
                "moves": self.steps > 0,
                "coupled": self.network.couples_samples(),
            }
            call = prepare_call(x, y, seed=self.seed if seed is None else seed, **arguments)
            if call.rows == 0:
                self.stats = AttackStats()
                return call.x.clone()
            counted = call.stats.clone()
            try:
                x_adv, zero, nan = self._made(call, memory_format(x), own=findings is None)
            except Stale as stale:
                if findings is not None and not findings.heard_at_once:
                    raise  # of an earlier call: this one has been given findings, and hears nothing
                self.network.give_up_copy(str(stale))
                call.stats.copy_(counted)
                call = prepare_call(x, y, seed=call.stream[0], **arguments)
                x_adv, zero, nan = self._made(call, memory_format(x), own=findings is None)
        # The warning is about this call, also where another thread has called in between.
        self.stats = stats = AttackStats(
            total=call.entries,
            zero=zero,
            nan=nan,
            gradients=call.gradients,
            planned=call.planned,
        )
        if findings is not None:
            findings.entries += call.entries
            return x_adv
        # The DLR is constant where the true class has come down to the third place: a success, and a gradient of 0.
        stats.warn(zeros=self.loss != "dlr" or self.targeted is not False)
        return x_adv

    def with_steps(self, steps: int, alpha: StepSize | None) -> Self:
        """The same attack with another number of steps and step size; both share the copy of the model.

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

    def _made(
        self, call: Call, layout: torch.memory_format, *, own: bool
    ) -> tuple[Tensor, int, int]:
        """The images of a call; with findings of its own, how many zeros and NaNs its gradients had.

        Raises Stale where they come from a copy that no longer gives what the model gives, if this call hears of it.
        """
        call.planned = gradients = call.rows * self.steps * self.restarts
        with self.network.attacked(call.x, call.findings):
            if self._reads() or (self.bn == "train_update" and own):
                call.findings.look()
            call.x = self.network.to_channels_last(call.x)
            if self.loss == "kl":
                call.goal = self._prediction(call)
            x_adv = self._attack(call)
            self.network.compare_copy(call.x, call.findings, gradients)
        x_adv = x_adv.contiguous(memory_format=layout)
        zero, nan = call.findings.look() if own else (0, 0)
        return x_adv, zero, nan

    def _attack(self, call: Call) -> Tensor:
        """All restarts; the worst case per sample."""
        if self.restarts == 1 and not self.early_stop:
            return self._run_once(call, self._start(call, restart=0), None)[0]
        worst = WorstCase(call)
        self._run_restarts(call, worst, range(self.restarts))
        return worst.images

    def _run_restarts(self, call: Call, worst: WorstCase, restarts: range) -> None:
        """Restarts of these numbers, which their noise follows, on the rows still standing."""
        for restart in restarts:
            rows = worst.rows()
            if not len(rows):
                break
            start = self._start(call, restart)[rows]
            worst.take(rows, *self._run_once(call, start, rows))

    def _reads(self) -> bool:
        """Whether a call waits for the device on its way: then it may as well hear of bad values before it begins."""
        return self.restarts > 1 or self.early_stop

    def _run_once(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run from the images x_adv, which may be overwritten, on some rows of the call.

        Returns:
            The images, whether they fool the model, and the loss that `_verdict` gives. With rows=None all rows run and
            the last two may be anything: no one asks for the verdict, which costs a forward.
        """
        raise NotImplementedError

    def _start(self, call: Call, restart: int) -> Tensor:
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
        """Log-probabilities [N, C] at x, by what gradients come from, so that the divergence from them is 0 at x."""
        log_p = self.network.predict(call.x).log_softmax(1)
        call.indexing(call.y, log_p.shape[1])  # for the check: what is indexed is the prediction
        return log_p

    def _goal(self, call: Call, logits: Tensor, rows: Tensor | None) -> Tensor:
        """The class whose loss is climbed, or for a target descended; for "kl" the prediction at x.

        Args:
            logits: [n, C] of those rows; of all rows of the call, where it has no goal yet.
        """
        if call.goal is None:
            y = call.indexing(call.y, logits.shape[1])
            if self.targeted == "random":
                draws = target_draws(call.stream, call.index)
                call.goal = random_targets(logits[: len(y)], y, draws)
            else:
                call.goal = y
            self._look_at_masks(call, logits)
        return call.goal if rows is None else call.goal[rows % len(call.y)]

    def _look_at_masks(self, call: Call, logits: Tensor) -> None:
        """Take note, at logits of all rows, whether masks leave a sample too few classes for its DLR."""
        if self.loss == "dlr":
            last = losses.last_of_dlr(logits, targeted=self.targeted is not False)
            call.findings.look_at_dlr(last)

    def _cotangent(self, logits: Tensor, goal: Tensor, source: Tensor | None = None) -> Tensor:
        return losses.cotangent(
            self.loss,
            logits,
            goal,
            targeted=self.targeted is not False,
            source=source,
            # Through batch statistics every sample's loss reaches every image, so there no sample's may be rescaled.
            saturation_proof=self.network.saturation_proof,
        )

    def _lead_gradient(
        self, call: Call, x_adv: Tensor, target: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [n, C] at x_adv, and the gradient of how far the target is ahead of the true class in them."""

        def cotangent(logits: Tensor) -> Tensor:
            one = logits.new_ones(len(logits), 1)
            ahead = torch.zeros_like(logits).scatter_(1, target.view(-1, 1), one)
            return ahead.scatter_(1, y.view(-1, 1), -one)

        logits, grad = self.network.input_vjp(x_adv, cotangent)
        call.count(grad)
        call.stats += torch.stack([(grad == 0).sum(), grad.isnan().sum()])
        return logits, grad

    def _verdict(self, call: Call, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """By the live model: whether images fool it, and how much, for choosing among those that do not."""
        with torch.no_grad():
            logits = self.network.logits(x_adv)
            y = call.indexing(y, logits.shape[1])
            loss = F.cross_entropy(logits.float(), y, reduction="none")
        return self._fooled(logits, y), -loss if self.targeted is True else loss

    def _confirmed(self, images: Tensor, y: Tensor, fooled: Tensor) -> Tensor:
        """Which of the images that fool the network gradients come from fool the live model."""
        if not self.network.is_shadowed:
            return fooled
        rows = fooled.nonzero()[:, 0]
        if len(rows):
            with torch.no_grad():
                fooled[rows] = self._fooled(self.network.logits(images[rows]), y[rows])
        return fooled

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        right = logits.argmax(1) == y
        return right if self.targeted is True else ~right
