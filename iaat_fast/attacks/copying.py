"""A copy of a model to take gradients from, and whether its forward is, and stays, that of the live model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iaat_fast.attacks.graph import Capture, Replayed
from iaat_fast.attacks.live import preserved_rng
from iaat_fast.attacks.options import EngineOptions
from iaat_fast.attacks.program import Program
from iaat_fast.attacks.shadow import Shadow
from iaat_fast.attacks.sources import ByAutograd, Source, compare, off, own
from iaat_fast.attacks.unshadowable import Unshadowable, brief

Forward = Callable[[Tensor], Tensor]

# Images on which a copy is compared with the live model; fewer after an attack of few gradients, of whose work two
# forwards of more would not be a small part.
_IMAGES, _FEWER, _FEW_GRADIENTS = 8, 2, 512
# Whether a copied forward is still the live one is asked of logits in the live model's own precision: by the same
# operations on the same tensors, so mostly with the same bits, whatever precision the copy computes in. In any attack
# they may be off by half of the bits, |difference| / |live|; when the copy is made by a hundred roundings, at most a
# quarter of that, so that what passes then passes later. Two forwards of a live model that draws nothing are held to
# the latter, too: kernels may add in another order.
_ROUNDINGS = 100.0
_KEEPS_TENSORS = (
    "model: its forward keeps tensors outside of its modules, expected it not to: copying has left one there that has "
    "no values; begin again with engine='exact' and precision='fp32', or keep them in a buffer"
)


class Taken(NamedTuple):
    """What gradients come from; of a copy, its forward in the live model's precision, with its weights; in words."""

    source: Source
    traced: Forward | None
    what: str


class CopyMaker:
    """Makes the best copy of a model.

    Args:
        model: in the mode in which it is attacked.
        live: its forward.
        levers: of the engine, with a shadow.
        precision, low: "bf16" and torch.bfloat16, say; None for a precision that is no half one.

    Attributes:
        reasons: why there is none, or no better one.
    """

    def __init__(
        self,
        model: nn.Module,
        live: Forward,
        levers: EngineOptions,
        precision: str,
        low: torch.dtype | None,
    ) -> None:
        # What torch.compile makes of a module calls the live one; its copy would, too.
        compiled = "_orig_mod" in model._modules
        self._model = model.get_submodule("_orig_mod") if compiled else model
        self._live, self._levers = live, levers
        self._precision, self._low = precision, low
        self.reasons: list[str] = []

    def make(self, x: Tensor) -> Taken | None:
        """A copy that gives what the live model gives for some of the images x; None where there is none."""
        some = x[:_IMAGES].contiguous()
        program = self._levers.fold and not self._levers.compile
        try:
            with preserved_rng(x.device):
                # Tables that it keeps in globals are there before it is traced.
                with torch.no_grad():
                    true = _logits_of_some(self._live, some)
                for make in (self._lowered, self._copied) if program else (self._copied,):
                    copied = self._checked(make, some, true)
                    if copied is not None:
                        return copied
        except Unshadowable as reason:
            self.reasons.append(str(reason))
        return None

    def _checked(self, make: Callable[[Tensor], Taken], some: Tensor, true: Tensor) -> Taken | None:
        """Raises Unshadowable where no kind of copy would do."""
        try:
            made = make(some)
        except Unshadowable as reason:
            self.reasons.append(str(reason))
            made = None
        with torch.no_grad():
            _compare_again(self._live, some, true)
        if made is None:
            return None
        try:
            assert made.traced is not None
            with torch.no_grad():
                _compare_forwards(made.traced, some, true)
            compare(made.source, self._live, some, self._precision, self._low)
        except Unshadowable as reason:
            self.reasons.append(str(reason))
            return None
        return made

    def _lowered(self, x: Tensor) -> Taken:
        program = Program(self._model, x, dtype=self._low, channels_last=self._levers.channels_last)
        rest = f", {len(program.by_autograd)} calls by autograd" if program.by_autograd else ""
        kind = self._low or "its own precision"
        what = f"a copy in {kind}{rest}, with {program.folded} BatchNorm layers folded"
        return Taken(program, program.traced, what)

    def _copied(self, x: Tensor) -> Taken:
        low = self._low
        shadow = Shadow(self._model, dtype=low, channels_last=self._levers.channels_last)
        shadow.refresh()
        call = torch.compile(shadow.module) if self._levers.compile else shadow.module
        source = ByAutograd(call, dtype=low, refresh=shadow.refresh)
        return Taken(source, shadow.traced, f"a copy in {low or 'its own precision'}, not folded")


class FrozenForward:
    """The live forward as a CUDA graph holds it, captured when an attack's steps are: what Python decided then stays.

    Args:
        live: the forward.
        x: images like those that it will be given, at least one.
        capture: as of `Replayed`.
    """

    def __init__(self, live: Forward, x: Tensor, capture: Capture) -> None:
        images = x[:1].expand(_IMAGES, *x.shape[1:]).clone()
        logits = live(images)

        def body() -> None:
            logits.copy_(live(images))

        self._images, self._logits = images, logits
        self._run = Replayed(body, x.device, capture)

    def __call__(self, x: Tensor) -> Tensor:
        self._images[: len(x)] = x
        self._run()
        return self._logits[: len(x)]


def refuse_random(live: Forward, x: Tensor) -> None:
    """Raise Unshadowable where two forwards of some of the images x differ, or cannot be made of so few."""
    some = x[:_IMAGES].contiguous()
    with preserved_rng(x.device), torch.no_grad():
        _compare_again(live, some, _logits_of_some(live, some))


def how_far(traced: Forward, live: Forward, x: Tensor, gradients: int) -> Tensor:
    """How far a copied forward is off the live one on some images, where 1 is as far as it may be: double [].

    Args:
        traced, live: the forwards.
        x: images of an attack.
        gradients: how many it has taken.
    """
    # Laid out as the example of a trace, whose views are of that.
    some = x[: _IMAGES if gradients >= _FEW_GRADIENTS else _FEWER].contiguous()
    with torch.no_grad(), preserved_rng(x.device):
        true = live(some)
        return off(traced(own(some)), true) / torch.finfo(true.dtype).eps ** 0.5


def _logits_of_some(live: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The live model's logits of some images, before it is copied: tables that it keeps in globals are made by then.

    Raises Unshadowable where it does not take them, or fewer: the attack's own batch may be fine all the same.
    """
    try:
        live(x[:_FEWER])
        return live(x)
    except Exception as error:
        raise Unshadowable(f"it does not take any number of images ({brief(error)})") from error


def _compare_again(live: Callable[[Tensor], Tensor], x: Tensor, true: Tensor) -> None:
    """Raise Unshadowable where the live model draws random numbers, and gives others than before.

    Raises ValueError where the copying has spoilt it.
    """
    try:
        error_size = float(off(live(x), true))
    # Tensors without values, as there are in a trace, make anything fail.
    except Exception as error:
        raise ValueError(_KEEPS_TENSORS) from error
    if not error_size <= _tight(true):
        raise Unshadowable(f"its forward is random: two of one batch are off by {error_size:.1e}")


def _compare_forwards(traced: Callable[[Tensor], Tensor], x: Tensor, true: Tensor) -> None:
    """Raise Unshadowable unless a copied forward, in the live model's precision, gives its logits `true` of x."""
    try:
        logits = traced(own(x))
    except Exception as error:
        raise Unshadowable(f"its copy failed: {brief(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != true.shape:
        raise Unshadowable("its copy returns something else")
    error_size = float(off(logits, true))
    if not error_size <= _tight(true):
        raise Unshadowable(
            f"its copied forward is off by {error_size:.1e}, more than {_tight(true):.1g}"
        )


def _tight(true: Tensor) -> float:
    eps = torch.finfo(true.dtype).eps
    return min(_ROUNDINGS * eps, eps**0.5 / 4)
