"""The network under attack: its logits, and the gradients of images, from the live model or from a copy of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast.attacks import inputs, options
from iaat_fast.attacks.channel_box import ChannelBox
from iaat_fast.attacks.cudagraph import GraphRunner, capturing
from iaat_fast.attacks.findings import Findings
from iaat_fast.attacks.gradients.copying import ChosenSource, choose, live_words
from iaat_fast.attacks.gradients.kept import KeptSources
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.shadow import Unshadowable
from iaat_fast.attacks.gradients.source import ByAutograd, Forward, MeanOfLosses, Source
from iaat_fast.attacks.gradients.verify import FrozenForward, copy_error, refuse_random
from iaat_fast.attacks.model.distributed import unwrap_ddp
from iaat_fast.attacks.model.ensemble import (
    Ensemble,
    mean_of_draws,
    over_draws,
    refuse_inner_losses,
    running,
)
from iaat_fast.attacks.model.mode import attacked, checked_modules, couples_samples, logits_of
from iaat_fast.attacks.model.modules import modules_of, roots_of
from iaat_fast.attacks.model.snapshot import TensorSnapshot
from iaat_fast.attacks.options import EngineOptions
from iaat_fast.attacks.passes import PassCounter
from iaat_fast.malloc import no_malloc_trim

logger = logging.getLogger("iaat_fast")

# The registered op, without the public function's checks: a call checks its arguments itself.
_pgd_step_linf_ = torch.ops.iaat_fast.pgd_step_linf_.default

_NO_GRADIENT = "model: its output has no gradient with respect to the images"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """A model as attacks use it: verdicts come from the live model, gradients from a copy if there is one.

    Args:
        model: maps images [N, ...] to logits [N, C].
        bn: BatchNorm's mode, see `PGD`.
        precision: "fp32", "tf32", "bf16", "fp16" or "auto".
        engine: "auto", "exact", "fast" or `EngineOptions`.
        eot: forwards, one after the other, of every gradient and every logits, see `PGD`.
        box: of images that are scaled by channel for the attack; None: they are attacked as they are.

    Attributes:
        model, given: over the images that an attack changes, and over those that it is given, the model itself.
        gradient_source: what the gradients come from, in words, after the first attack.
        classes: of the model as it is, once it has been called.
        passes: what counts the passes of each sample, inside `attacked`; None where no one asks.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        bn: str,
        precision: str,
        engine: str | EngineOptions,
        eot: int = 1,
        box: ChannelBox | None = None,
    ) -> None:
        options.check(precision, engine)
        self.given = self.model = unwrap_ddp(model)
        refuse_inner_losses(self.model, checked_modules(self.model, bn))
        self._box, self._unscaled = box, None
        if box is not None:
            self.model, self._unscaled = box.before(self.given)
        self.bn, self.precision, self.engine, self.eot = bn, precision, engine, eot
        self.gradient_source = "the live model"
        self.classes: int | None = None
        self.passes: PassCounter | None = None
        self._source: Source = ByAutograd(self.model)
        self._copied_forward: Forward | None = None
        self._kept = KeptSources()
        self._frozen: dict[Hashable, FrozenForward] = {}
        self._has_replayed = False
        self._watched: TensorSnapshot | None = None
        self._graphs = GraphRunner()
        self._capturable = ("cuda",)
        self._resolved, self._options, self._coupled = "fp32", options.PLAIN, False

    @property
    def taken(self) -> str:
        """`gradient_source`, by its former name."""
        return self.gradient_source

    def couples_samples(self) -> bool:
        """Whether a sample's logits depend on the other samples in the batch."""
        return couples_samples(self.model, self.bn)

    @property
    def is_shadowed(self) -> bool:
        """Whether gradients come from a copy or under autocast, so that its logits may differ from the live model's."""
        return self._copied_forward is not None or self._resolved in _DTYPES

    @property
    def saturation_proof(self) -> bool:
        """Whether cotangents may be scaled per sample. Valid inside `attacked`."""
        return self._options.saturation_proof and not self._coupled and not self._of_losses

    @property
    def cotangents(self) -> int:
        """How often a gradient calls for its cotangent: for each model and draw, and last for their mean."""
        each = 1
        if isinstance(self.model, Ensemble) and self._of_losses:
            each += len(running(self.model)[0])
        return each if self.eot == 1 else self.eot * each + 1

    @property
    def _of_losses(self) -> bool:
        """Whether the loss is a mean over models, in which no sample's may be rescaled for one of them."""
        return isinstance(self.model, Ensemble) and self.model.mean == "losses"

    def in_mode(self) -> contextlib.AbstractContextManager[None]:
        """A context with the model in the attack's mode, for forwards without gradients."""
        return attacked(self.model, self.bn)

    @contextlib.contextmanager
    def attacked(
        self, x: Tensor, findings: Findings | None = None, passes: PassCounter | None = None
    ) -> Iterator[None]:
        """The model in the attack's mode and the copy fresh; afterwards the model is as it was.

        Args:
            x: images [N, ...] that are to be attacked.
            findings: look at the weights.
            passes: count the passes of each sample.

        Raises:
            ValueError: the model cannot be attacked in this mode, has NaN weights (on a GPU only if a copy is made,
                otherwise the findings report it), or its forward changes its weights or mode.
        """
        resolved, engine_options = options.resolve(
            self.precision, self.engine, x.device, self.model
        )
        with (
            no_malloc_trim(x.device),
            # TF32 is switched for the whole process.
            attacked(self.model, self.bn, exclusively=resolved == "tf32"),
            _tf32(resolved == "tf32"),
        ):
            if self._box is not None and self._unscaled is not None:
                self._unscaled.place(*self._box.constants(x))
            self._resolved, self._options = resolved, engine_options
            self._coupled = self.couples_samples()
            self._prepare(x, findings)
            self.passes = passes
            try:
                yield
            finally:
                self.passes = None
            self._kept.end_attack()

    def logits(self, x: Tensor, eot: int | None = None) -> Tensor:
        """The live model's logits [N, C], of `eot` draws as `mean_of_draws`; None: as many as the attack's."""
        return self._logits(self.model, x, eot)

    def logits_as_given(self, images: Tensor, eot: int | None = None) -> Tensor:
        """The same of images as they are given and returned, which with bounds per channel are not those it changes."""
        return self._logits(self.given, images, eot)

    def _logits(self, model: Callable[[Tensor], Tensor], x: Tensor, eot: int | None) -> Tensor:
        eot = self.eot if eot is None else eot
        if self.passes is not None:
            self.passes.add(len(x), backward=False, times=eot)
        return over_draws(lambda: logits_of(model, x), eot)

    def _live(self, x: Tensor) -> Tensor:
        """The same for comparisons, which are no part of an attack."""
        return logits_of(self.model, x)

    def input_vjp(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits at x, and the vector-Jacobian product of `cotangent(logits)`: the gradient of the images.

        Args:
            x: images [N, ...].
            cotangent: maps detached logits [N, C], in float32 or float64, to the gradient of the loss with respect to
                them, [N, C].

        Returns:
            Detached logits [N, C] in float32 or float64, and the gradient [N, ...] in the dtype of x.

        Raises:
            ValueError: the model does not return logits [N, C], or they have no gradient with respect to the images.
        """
        wide = x  # replaced by the logits below

        def widened(logits: Tensor) -> Tensor:
            nonlocal wide
            wide = _wide(logits)
            return cotangent(wide)

        grad = self.gradient(x, widened)
        return wide, grad

    def gradient(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> Tensor:
        """Only the gradient of `input_vjp`; `cotangent` gets the logits in the dtype of the gradient source.

        With eot > 1 it is the mean of the gradients of as many draws, and `cotangent` gets the logits of each, then
        those of `mean_of_draws`, last, for whoever keeps the logits that it is given.
        """

        def checked(logits: Tensor) -> Tensor:
            self._check_logits(logits, x)
            return cotangent(logits)

        if self.passes is not None:
            self.passes.add(len(x), backward=True, times=self.eot)
        images = self.to_channels_last(x.detach())
        if self.eot == 1:
            _, grad = self._source.input_vjp(images, checked)
        else:
            grad = self._mean_gradient(images, checked)
        if grad is None:
            raise ValueError(_NO_GRADIENT)
        return grad.to(x.dtype)

    def _mean_gradient(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The mean of the gradients of `eot` draws, at least in float32; None if there is none.

        One draw after the other: a model may draw once per forward for its whole batch, so that copies of the images
        in one batch would share a draw, and memory stays that of one.
        """
        each = []
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for _ in range(self.eot):
            logits, grad = self._source.input_vjp(x, cotangent)
            if grad is None:
                return None
            each.append(_wide(logits))
            total += grad
        cotangent(mean_of_draws(each))
        return total / self.eot

    def step_(self, x_adv: Tensor, cotangent: Callable[[Tensor], Tensor], *rest: Any) -> None:
        """One PGD step on x_adv, in place: `ops.pgd_step_linf_` with `gradient`; `rest`: its arguments from x on."""
        source = self._source
        if self.eot > 1 or not (isinstance(source, Program) and source.takes_steps):
            _pgd_step_linf_(x_adv, self.gradient(x_adv, cotangent), *rest)
            return

        def checked(logits: Tensor) -> Tensor:
            self._check_logits(logits, x_adv)
            return cotangent(logits)

        if self.passes is not None:
            self.passes.add(len(x_adv), backward=True)
        source.step_(x_adv, checked, *rest)

    def predict(self, x: Tensor) -> Tensor:
        """Logits [N, C] of the gradient source, in float32 or float64, without a gradient; inside `attacked`."""
        with torch.no_grad():
            if self.passes is not None:
                self.passes.add(len(x), backward=False, times=self.eot)
            images = self.to_channels_last(x)
            logits = over_draws(lambda: self._source.forward(images), self.eot)
            self._check_logits(logits, x)
            return _wide(logits)

    def to_channels_last(self, x: Tensor) -> Tensor:
        """x in channels_last if gradients come from a copy in that memory format; else x itself."""
        if self._copied_forward is not None and self._options.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def captures(self, x: Tensor) -> bool:
        """Whether steps on x may be captured in a CUDA graph: on CUDA, for a module whose buffers do not change."""
        return (
            self._options.graph
            and x.device.type in self._capturable
            and isinstance(self.model, nn.Module)
            and self.bn == "eval"
            and self._kept.stale is None
        )

    def replay(
        self,
        key: Hashable,
        tensors: Sequence[Tensor],
        step: Callable[[Sequence[Tensor]], None],
        steps: int,
        *,
        written: int,
    ) -> None:
        """See `GraphRunner.run`; the key also includes the state of the model and the engine's options."""
        self._has_replayed = True
        passes, self.passes = self.passes, None  # a replay runs no Python that could count
        self._graphs.run(
            (key, self._kept.made_for, self.saturation_proof), tensors, step, steps, written=written
        )
        self.passes = passes

    def compare_copy(self, x: Tensor, findings: Findings, gradients: int) -> None:
        """Compare the copied or captured forward with the live one on some of the images x, and record the error.

        They may differ even though no hook, weight or attribute has changed, because the forward may depend on a
        global variable, or on a value that tracing made a constant. Does nothing while the caller captures a CUDA
        graph, in which the live forward would be fixed too.

        Call it inside `attacked` after the steps: on a GPU the host then launches it while the steps still run.

        Args:
            x: images [N, ...] of the attack.
            findings: where the error is recorded.
            gradients: images times steps of the attack.
        """
        if capturing(x.device):
            return
        forward = self._copied_forward
        if forward is None and self._has_replayed:
            shape = (x.shape[1:], x.dtype, x.device)
            if shape not in self._frozen:
                with torch.no_grad():
                    self._frozen[shape] = FrozenForward(self._live, x, self._graphs.capture)
            forward = self._frozen[shape]
        if forward is not None:
            findings.look_at_copy(copy_error(forward, self._live, x, gradients))

    def give_up_copy(self, reason: str) -> None:
        """Take gradients from the live model, without CUDA graphs, until the model changes."""
        self._kept.give_up(reason)
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        self._graphs.forget()
        self._frozen.clear()

    def _check_logits(self, logits: Tensor, x: Tensor) -> None:
        """Check the logits' shape and, after an attack's first forward, that it has not changed the model."""
        inputs.logits(logits, len(x))
        self.classes = logits.shape[1]
        if self._watched is not None:
            self._watched.check()
            self._watched = None

    def _prepare(self, x: Tensor, findings: Findings | None) -> None:
        """Record NaN weights, then make the source of the gradients, or refresh the existing one."""
        model = self.model
        self._has_replayed = False
        if findings is not None:
            for root in roots_of(model):
                findings.look_at_weights(root, self.bn)
        modules = modules_of(model)
        self._watched = TensorSnapshot(modules, self.bn)
        if not isinstance(model, nn.Module):
            self._source, self._copied_forward = ByAutograd(model), None
            return
        made_for = (self._options, self._resolved, self._watched.identity())
        if self._kept.follow(made_for, modules):
            self._forget_graphs()
            self.classes = None
        shape = (x.shape[1:], x.dtype, x.device)
        kept = self._kept.get(shape)
        if kept is None:
            if self._options.shadow and findings is not None:
                findings.look()  # raises for NaN, with which no copy could be compared
            # Kept only when complete: if making it fails, for lack of memory say, the next call tries again.
            chosen = self._make_source(model, x)
            if self._kept.keep(shape, chosen):
                self._graphs.forget()
        else:
            chosen = kept
        self._source, self._copied_forward, self.gradient_source = chosen
        if kept is not None:
            self._source.refresh()

    def _make_source(self, model: nn.Module, x: Tensor) -> ChosenSource:
        """The best copy that matches the live model, else the live model, which is looked at before a capture."""
        half = _DTYPES.get(self._resolved)
        if isinstance(model, Ensemble) and self._of_losses:
            return ChosenSource(
                MeanOfLosses(model, autocast=half), None, live_words(half, "models")
            )
        why_not = self._kept.stale
        if self.bn == "train_update":
            why_not = "its running statistics are to be updated"
        made = choose(model, self._live, x, self._options, self._resolved, half, why_not=why_not)
        if made.copied_forward is None and self.captures(x) and not capturing(x.device):
            try:
                refuse_random(self._live, x)
            except Unshadowable as reason:
                self._kept.stale = str(reason)
                logger.info("attack: its steps are not captured (%s)", reason)
        return made


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Allow TF32 in matrix products and convolutions of NVIDIA GPUs, and restore what was allowed."""
    if not wanted:
        yield
        return
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = convolutions
