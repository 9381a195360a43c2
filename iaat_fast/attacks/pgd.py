"""PGD in the L-infinity norm, with a radius and a step size of its own for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.attacks import inputs
from iaat_fast.attacks.call import Call, StepSize, prepare_call
from iaat_fast.attacks.model_state import BN_MODES, attacked, bare, couples_samples
from iaat_fast.attacks.stats import AttackStats
from iaat_fast.attacks.targets import random_targets
from iaat_fast.ops import checks
from iaat_fast.ops.layout import memory_format
from iaat_fast.ops.reference import softmax_minus_onehot

# The ops themselves, behind the checks of the public functions: a call's arguments are checked once.
_pgd_step_linf_ = torch.ops.iaat_fast.pgd_step_linf_.default
_random_start_linf = torch.ops.iaat_fast.random_start_linf.default
_ce_cotangent = torch.ops.iaat_fast.ce_cotangent.default

_NO_GRADIENT = "model: its output has no gradient with respect to the images"


class PGD:
    """Projected gradient descent on the cross-entropy, from a random point of the ball.

        pgd = PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)
        x_adv = pgd(x, y)
        x_adv = pgd(x, y, eps=radii)              # a radius per sample, [N]; [K*N]: K candidates each
        x_adv = pgd(x, y, start=x_start)          # a given start instead of the random one

    In float32 the iterates are, bit for bit, those of the plain PyTorch loop from the same start, except of samples
    that saturate: where p_y >= 1 - 2**-12 the plain gradient has lost its bits, and `ops.ce_cotangent` restores them.
    The model's mode, gradients and buffers are as they were afterwards (but see `bn`), and nothing in the loop waits
    for the device.

    Args:
        model: maps images [N, ...] in [lo, hi] to logits [N, C]; normalisation belongs in it.
        eps: radius on the scale of the images, a float or a tensor [N].
        alpha: step size, a float, a tensor [N], or a function of the radii such as `scaled_step(steps)`.
        steps: number of gradient steps.
        restarts: independent random starts. A sample that falls keeps its first adversarial example, and later restarts
            leave it out; one that never falls keeps its iterate of largest loss.
        random_start: start uniformly in the ball instead of at x.
        clamp_start: clamp the random start to [lo, hi] (the authors' released code does not).
        targeted: False; True, y is the target; "random", y is the true class and the target is drawn uniformly from the
            others, once per sample and call.
        lo, hi: range of the pixels.
        bn: BatchNorm's mode during the attack: "eval"; "train", batch statistics, buffers restored; "train_update",
            batch statistics that also update the running ones (the authors' released code).
        precision: "fp32", the model as it is.
        engine: "auto"; or "exact", the arithmetic of the plain loop also where cross-entropy saturates.
        early_stop: keep, for every sample, the first iterate that fools the model instead of the last iterate.
        seed: of the random start and targets, the same in every call; None draws one per call from torch's generator.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, named, with what was expected.

    Source: Madry et al. 2018, Section 2.1; PGD_k of IAAT's Algorithms 1 and 2.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        alpha: StepSize = 2 / 255,
        steps: int = 10,
        *,
        restarts: int = 1,
        random_start: bool = True,
        clamp_start: bool = True,
        targeted: bool | Literal["random"] = False,
        lo: float = 0.0,
        hi: float = 1.0,
        bn: str = "eval",
        precision: str = "fp32",
        engine: str = "auto",
        early_stop: bool = False,
        seed: int | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a callable, got {type(model).__name__}")
        inputs.whole_number("steps", steps, at_least=0)
        inputs.whole_number("restarts", restarts, at_least=1)
        inputs.one_of("targeted", targeted, (False, True, "random"))
        inputs.one_of("bn", bn, BN_MODES)
        inputs.one_of("precision", precision, ("fp32",))
        inputs.one_of("engine", engine, ("auto", "exact"))
        if seed is not None:
            checks.int64_number("seed", seed)
        checks.box(lo, hi)
        inputs.radius("eps", eps)
        if not callable(alpha):
            inputs.radius("alpha", alpha, positive=steps > 0)
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts: {restarts} without random_start would all be the same")
        self.model = bare(model)
        self.eps, self.alpha, self.steps = eps, alpha, steps
        self.restarts, self.random_start, self.clamp_start = restarts, random_start, clamp_start
        self.targeted, self.lo, self.hi, self.bn = targeted, lo, hi, bn
        self.precision, self.engine = precision, engine
        self.early_stop, self.seed = early_stop, seed
        self.stats = AttackStats(total=0, zero=0, nan=0)

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        eps: float | Tensor | None = None,
        alpha: StepSize | None = None,
        start: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
        candidate: int = 0,
    ) -> Tensor:
        """Adversarial images for x.

        Args:
            x: images [N, ...] in [lo, hi], floating point. Values outside by no more than float noise are accepted.
            y: int64 [N], true classes, or targets where `targeted` is True.
            eps: radius of this call, a float or a tensor [N]; a tensor [K*N] asks for K candidates per sample.
            alpha: step size of this call, a float, a tensor like eps or [N], or a function of the radii.
            start: images like x (or the [K*N, ...] of the result) where the first gradient is taken.
            index: int64 [N], numbers of the samples in their data set, which the noise follows; default 0 ... N-1.
            seed: of this call.
            candidate: number of the first candidate; another number draws other noise from the same seed.

        Returns:
            [K*N, ...] in the dtype, device and memory format of x; row k*N + i is candidate k of sample i. `self.stats`
            then counts the gradients' entries, and a RuntimeWarning says where they could not have found anything.

        Raises:
            TypeError, ValueError: an argument, or what the model returns, is not as described.
        """
        # The loop needs gradients also where the caller, a validation loop for example, has switched them off.
        with torch.inference_mode(False), torch.enable_grad():
            if start is not None and self.restarts > 1:
                raise ValueError(
                    f"start: given, but {self.restarts} restarts would all begin there"
                )
            call = prepare_call(
                x,
                y,
                eps=self.eps if eps is None else eps,
                alpha=self.alpha if alpha is None else alpha,
                start=start,
                index=index,
                seed=self.seed if seed is None else seed,
                candidate=candidate,
                box=(self.lo, self.hi),
                moves=self.steps > 0,
                coupled=couples_samples(self.model, self.bn),
            )
            if call.rows == 0:
                self.stats = AttackStats(total=0, zero=0, nan=0)
                return call.x.clone()
            with attacked(self.model, self.bn):
                x_adv = self._attack(call)
            zero, nan = call.stats.tolist()
        self.stats = AttackStats(total=call.entries, zero=zero, nan=nan)
        self.stats.warn()
        return x_adv

    def logits(self, x: Tensor) -> Tensor:
        """The model's logits [N, C] for x in the attack's BatchNorm mode, without gradients."""
        with attacked(self.model, self.bn), torch.no_grad():
            return self._forward(x)

    def _attack(self, call: Call) -> Tensor:
        """All restarts; the worst case per sample."""
        if self.restarts == 1 and not self.early_stop:
            return self._descend(call, self._start(call, restart=0), None)[0]
        worst = call.per_row(call.x).clone(memory_format=memory_format(call.x))
        worst_loss = torch.full((call.rows,), -torch.inf, device=call.x.device)
        standing = torch.arange(call.rows, device=call.x.device)
        for restart in range(self.restarts):
            start = self._start(call, restart)
            rows = torch.arange(call.rows, device=call.x.device) if call.coupled else standing
            x_adv, fooled, loss = self._descend(call, start[rows], rows)
            worse = fooled | (loss > worst_loss[rows])
            if call.coupled:
                # Batch statistics tie the samples together, so all of them run; fallen ones keep what they have.
                worse &= torch.isin(rows, standing)
            worst[rows[worse]] = x_adv[worse]
            worst_loss[rows[worse]] = loss[worse]
            standing = standing[~torch.isin(standing, rows[fooled])]
            if not len(standing):
                break
        return worst

    def _start(self, call: Call, restart: int) -> Tensor:
        if call.start is not None:
            start = call.start.detach()
            start = start if len(start) == call.rows else call.per_row(start)
            return start.clone(memory_format=memory_format(call.x))
        if not self.random_start:
            return call.per_row(call.x).clone(memory_format=memory_format(call.x))
        lo, hi = (self.lo, self.hi) if self.clamp_start else (-torch.inf, torch.inf)
        call.stream[1] = restart
        return _random_start_linf(call.x, call.eps, call.stream, call.index, lo, hi)

    def _descend(
        self, call: Call, x_adv: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k steps from x_adv, in place, on some rows; returns iterates, whether they fool the model, their loss.

        With rows=None, all of them run and the verdict, which costs a forward, is left out.
        """
        x, eps, alpha = call.x, call.eps, call.alpha
        y = call.y if rows is None else call.y[rows % len(call.y)]
        if rows is not None:
            x, eps, alpha = x[rows % len(x)], eps[rows], alpha[rows]
        found = torch.zeros(len(x_adv), dtype=torch.bool, device=x.device)
        first = x_adv.clone() if self.early_stop else x_adv
        for _ in range(self.steps):
            leaf = x_adv.detach().requires_grad_()
            logits = self._forward(leaf)
            goal = self._goal(call, logits, rows)
            if self.early_stop:
                found |= self._keep_first(first, x_adv, logits, y, found)
            cotangent = self._cotangent(call, logits.detach(), goal)
            (grad,) = torch.autograd.grad(logits, leaf, cotangent, allow_unused=True)
            if grad is None:
                raise ValueError(_NO_GRADIENT)
            del logits  # frees the graph before the step
            _pgd_step_linf_(
                x_adv, grad, x, eps, alpha, self.lo, self.hi, self.targeted is not False, call.stats
            )
            call.entries += grad.numel()
        if rows is None:
            return x_adv, found, eps
        with torch.no_grad():
            logits = self._forward(x_adv)
            if self.early_stop:
                found |= self._keep_first(first, x_adv, logits, y, found)
                x_adv = torch.where(_column(found, x_adv), first, x_adv)
            loss = F.cross_entropy(logits.float(), y, reduction="none")
        return x_adv, found | self._fooled(logits, y), -loss if self.targeted is True else loss

    def _keep_first(
        self, first: Tensor, x_adv: Tensor, logits: Tensor, y: Tensor, found: Tensor
    ) -> Tensor:
        """Store the iterates that fool the model for the first time; which samples these are."""
        new = self._fooled(logits.detach(), y) & ~found
        first.copy_(torch.where(_column(new, x_adv), x_adv, first))
        return new

    def _forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: returned {found} for {len(x)} images, expected [{len(x)}, C]")
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise ValueError(_NO_GRADIENT)
        return logits

    def _goal(self, call: Call, logits: Tensor, rows: Tensor | None) -> Tensor:
        """The class whose cross-entropy is climbed, or for a target descended."""
        if call.goal is None:
            classes = logits.shape[1]
            if call.largest_class >= classes:
                raise ValueError(
                    f"y: {call.largest_class}, expected a class in 0 ... {classes - 1}"
                )
            call.goal = call.y
            if self.targeted == "random":
                call.goal = random_targets(call.y, classes, call.stream, call.index)
        return call.goal if rows is None else call.goal[rows % len(call.y)]

    def _cotangent(self, call: Call, logits: Tensor, goal: Tensor) -> Tensor:
        # Through batch statistics every sample's loss reaches every image, so there no sample's may be rescaled.
        if self.engine == "exact" or call.coupled:
            return softmax_minus_onehot(logits, goal)
        return _ce_cotangent(logits, goal, self.targeted is not False)

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        right = logits.argmax(1) == y
        return right if self.targeted is True else ~right


def _column(mask: Tensor, images: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (images.dim() - 1))
