"""The network under attack: its logits, and what pulls a cotangent of the logits back to the images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn

from iaat_fast.attacks import options
from iaat_fast.attacks.findings import Findings
from iaat_fast.attacks.graph import GraphRunner
from iaat_fast.attacks.model_state import (
    attacked,
    bare,
    buffers_of,
    couples_samples,
    modules_of,
    parameters_of,
)
from iaat_fast.attacks.options import EngineOptions
from iaat_fast.attacks.shadow import Shadow, Unshadowable
from iaat_fast.heap import kept_heap

logger = logging.getLogger("iaat_fast")

_NO_GRADIENT = "model: its output has no gradient with respect to the images"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# How far the shadow's logits may be from the live ones, |difference| / |logits| over some images. Folding rounds
# differently (1e-6), bf16 has 8 bits and a deep network loses some of them (1e-2); a wrong trace is off by about 1.
_TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.15, "fp16": 0.05}
_PROBE = 8  # images of the first batch on which a new shadow is compared with the live model


class Network:
    """A model as attacks see it. Verdicts come from the live model, gradients from its shadow where there is one.

    Args:
        model: maps images [N, ...] to logits [N, C].
        bn: BatchNorm's mode, see `PGD`.
        precision: "fp32", "tf32", "bf16", "fp16" or "auto".
        engine: "auto", "exact", "fast" or `EngineOptions`.

    Attributes:
        taken: what the gradients come from, in words, after the first attack.
        classes: of the model as it is, once it has been called.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        bn: str,
        precision: str,
        engine: str | EngineOptions,
    ) -> None:
        options.check(precision, engine)
        self.model = bare(model)
        self.bn, self.precision, self.engine = bn, precision, engine
        self.taken = "the live model"
        self.classes: int | None = None
        self._shadow: Shadow | None = None
        self._made_for: Hashable = None
        self._watched: _State | None = None
        self._graphs = GraphRunner()
        self._capturable = ("cuda",)
        self._source: Callable[[Tensor], Tensor] = self.model
        self._resolved, self._levers, self._coupled = "fp32", options.PLAIN, False

    def couples_samples(self) -> bool:
        """Whether a sample's logits depend on who else is in the batch."""
        return couples_samples(self.model, self.bn)

    @property
    def is_shadowed(self) -> bool:
        """Whether gradients come from a copy, or under autocast, and not from the live model as it is."""
        return self._shadow is not None or self._resolved in _DTYPES

    @property
    def saturation_proof(self) -> bool:
        """Whether cotangents may be scaled per sample; inside `attacked`."""
        return self._levers.saturation_proof and not self._coupled

    def in_mode(self) -> contextlib.AbstractContextManager[None]:
        """The model in the attack's mode, without anything to take gradients from."""
        return attacked(self.model, self.bn)

    @contextlib.contextmanager
    def attacked(self, x: Tensor, findings: Findings | None = None) -> Iterator[None]:
        """The model in the attack's mode and the shadow fresh; afterwards the model is as it was.

        Args:
            x: images [N, ...] that are to be attacked.
            findings: look at the weights.

        Raises:
            ValueError: the model has weights that are NaN (on a GPU where a shadow is made, else the findings will
                tell), or changes its weights or its mode in forward.
        """
        self._resolved = options.resolve_precision(self.precision, x.device)
        self._levers = options.resolve_engine(self.engine, self._resolved)
        self._coupled = self.couples_samples()
        with (
            kept_heap(x.device),
            attacked(self.model, self.bn),
            _tf32(self._resolved == "tf32"),
        ):
            self._prepare(x, findings)
            yield

    def logits(self, x: Tensor) -> Tensor:
        """The live model's logits [N, C]."""
        logits = self.model(x)
        _check_logits(logits, x)
        return logits

    def pull_back(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits at x, and the gradient of the images that `cotangent(logits)` gives.

        Args:
            x: images [N, ...].
            cotangent: maps logits [N, C], detached, in float32 or wider, to what is pulled back, of their shape.

        Returns:
            Logits [N, C], detached, and the gradient, in the dtype of x.
        """
        leaf = self._as_source_reads(x.detach()).detach().requires_grad_()
        logits = self._forward(leaf)
        if not logits.requires_grad:
            raise ValueError(_NO_GRADIENT)
        wide = _wide(logits.detach())
        (grad,) = torch.autograd.grad(
            logits, leaf, cotangent(wide).to(logits.dtype), allow_unused=True
        )
        if grad is None:
            raise ValueError(_NO_GRADIENT)
        return wide, grad.to(x.dtype)

    def predict(self, x: Tensor) -> Tensor:
        """Logits [N, C] of what gradients come from, in float32 or wider, without a gradient; inside `attacked`."""
        with torch.no_grad():
            return _wide(self._forward(self._as_source_reads(x)))

    def _as_source_reads(self, x: Tensor) -> Tensor:
        low = _DTYPES.get(self._resolved)
        x = self.laid_out(x)
        return x if low is None or self._shadow is None else x.to(low)

    def _autocast(self, x: Tensor) -> contextlib.AbstractContextManager[object]:
        """Where half precision is wanted and no shadow has it."""
        low = _DTYPES.get(self._resolved)
        if low is None or self._shadow is not None:
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, low)

    def laid_out(self, x: Tensor) -> Tensor:
        """x in the memory format that the shadow's kernels like."""
        if self._shadow is not None and self._levers.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def captures(self, x: Tensor) -> bool:
        """Whether steps on x may be captured: on CUDA, of a module whose buffers stand still."""
        return (
            self._levers.graph
            and x.device.type in self._capturable
            and isinstance(self.model, nn.Module)
            and self.bn == "eval"
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
        """See `GraphRunner.run`; graphs of another model, or of other levers, are not used."""
        self._graphs.run(
            (key, self._made_for, self.saturation_proof), tensors, step, steps, written=written
        )

    def _forward(self, x: Tensor) -> Tensor:
        """What gradients come from, called; the first time in an attack, with a look at what that did to the model."""
        with self._autocast(x):
            logits = self._source(x)
        _check_logits(logits, x)
        self.classes = logits.shape[1]
        if self._watched is not None:
            self._watched.check()
            self._watched = None
        return logits

    def _prepare(self, x: Tensor, findings: Findings | None) -> None:
        """Make the shadow, or refresh the one there is; look at the weights first."""
        model = self.model
        self._watched = None
        if not isinstance(model, nn.Module):
            self._source, self._shadow = model, None
            return
        if findings is not None:
            findings.look_at_weights(model)
        self._watched = _State(model, self.bn)
        low = _DTYPES.get(self._resolved)
        made_for = (self._levers, self._resolved, self._watched.identity())
        if made_for == self._made_for:
            if self._shadow is not None:
                self._shadow.refresh()
            return
        self._shadow, self._source, self._made_for, self.classes = None, model, None, None
        self._graphs.forget()
        self.taken = "the live model" if low is None else f"the live model under {low} autocast"
        if self._levers.shadow:
            if findings is not None:
                findings.look()  # a copy is not judged by what it makes of NaN
            self._make_shadow(model, x, low)
        self._made_for = (
            made_for  # last: making that was interrupted, by lack of memory say, is begun anew
        )

    def _make_shadow(self, model: nn.Module, x: Tensor, low: torch.dtype | None) -> None:
        """The best shadow that gives what the live model gives; the live model where none does."""
        levers, reasons = self._levers, []
        if self.bn == "train_update":
            reasons.append("its running statistics are to be updated")
        else:
            for fold in [True, False] if levers.fold else [False]:
                try:
                    shadow = Shadow(model, dtype=low, fold=fold, channels_last=levers.channels_last)
                    shadow.refresh()
                    self._compare(shadow, x, low)
                except Unshadowable as reason:
                    reasons.append(str(reason))
                    continue
                self._shadow = shadow
                self._source = torch.compile(shadow.module) if levers.compile else shadow.module
                what = f"with {shadow.folded} BatchNorm layers folded" if fold else "not folded"
                self.taken = f"a copy in {low or 'its own precision'}, {what}"
                break
        because = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        report = logger.warning if self._shadow is None else logger.info
        report("attack: gradients come from %s%s", self.taken, because)

    def _compare(self, shadow: Shadow, x: Tensor, low: torch.dtype | None) -> None:
        """Raise Unshadowable unless the shadow's logits are the live ones, up to its precision."""
        some = x[:_PROBE]
        with torch.no_grad():
            live = self.logits(some).double()
            try:
                copied = shadow.module(some.to(low or some.dtype))
            # The copy runs the user's forward in another dtype: whatever that raises, the copy is of no use.
            except Exception as error:
                raise Unshadowable(f"its copy failed: {type(error).__name__}: {error}") from error
            if not isinstance(copied, Tensor) or copied.shape != live.shape:
                raise Unshadowable("its copy returns something else")
            error_size = float((copied.double() - live).norm() / live.norm().clamp(min=1e-30))
        if not error_size <= _TOLERANCE[self._resolved]:
            raise Unshadowable(
                f"its copy's logits are off by {error_size:.1e}, more than {_TOLERANCE[self._resolved]:g}"
            )


class _State:
    """Weights and modes of a model, to see whether its forward changes them."""

    def __init__(self, model: nn.Module, bn: str) -> None:
        self.modules = modules_of(model)
        # Batch statistics update the running ones; `attacked` knows about that.
        buffers = buffers_of(self.modules) if bn == "eval" else []
        tensors = [*parameters_of(self.modules), *buffers]
        self.tensors = [(tensor, tensor._version) for tensor in tensors]
        self.training = [module.training for module in self.modules]

    def identity(self) -> Hashable:
        """Equal for the same modules, tensors and modes."""
        return (
            tuple(map(id, self.modules)),
            tuple((id(tensor), tensor.data_ptr(), tensor.dtype) for tensor, _ in self.tensors),
            tuple(self.training),
        )

    def check(self) -> None:
        """Raise ValueError where forward has changed the model."""
        if [module.training for module in self.modules] != self.training:
            raise ValueError(
                "model: its forward changes its mode (train or eval), expected it to keep it"
            )
        if any(tensor._version != version for tensor, version in self.tensors):
            raise ValueError(
                "model: its forward changes its own weights or buffers, expected them to stand still in an attack"
            )


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _check_logits(logits: object, x: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: returned {found} for {len(x)} images, expected [{len(x)}, C]")


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
