"""Choose the copy of a model that gives gradients: a program (fastest), else a shadow, else none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.shadow import Shadow, Unshadowable
from iaat_fast.attacks.gradients.source import ByAutograd, Forward, Source
from iaat_fast.attacks.gradients.verify import (
    IMAGES,
    check_deterministic,
    check_forward,
    check_gradients,
    logits_of_some,
)
from iaat_fast.attacks.model.snapshot import preserved_rng
from iaat_fast.attacks.options import EngineOptions

logger = logging.getLogger("iaat_fast")


class ChosenSource(NamedTuple):
    """A gradient source, and the copy behind it."""

    source: Source
    copied_forward: Forward | None
    """The copy's forward on the live weights, in the live model's precision; None if the source is the live model."""
    description: str


def choose(
    model: nn.Module,
    live: Forward,
    x: Tensor,
    options: EngineOptions,
    precision: str,
    half: torch.dtype | None,
    *,
    why_not: str | None,
) -> ChosenSource:
    """The best copy of a model that matches it on some of the images x, else the model itself; logs which it is.

    Args:
        model, live, precision, half: as `CopyMaker`'s.
        x: images [N, ...].
        options: of the engine.
        why_not: why no copy may be made; None if one may.
    """
    what = live_words(half)
    if options.shadow:
        reasons = [] if why_not is None else [why_not]
        if why_not is None:
            maker = CopyMaker(model, live, options, precision, half)
            copied = maker.make(x)
            reasons = maker.reasons
            if copied is not None:
                because = _because(reasons)
                logger.info("attack: gradients come from %s%s", copied.description, because)
                return copied
        logger.warning("attack: gradients come from %s%s", what, _because(reasons))
    return ChosenSource(ByAutograd(model, autocast=half), None, what)


def live_words(half: torch.dtype | None, noun: str = "model") -> str:
    """What `ChosenSource.description` says of the live model."""
    return f"the live {noun}" if half is None else f"the live {noun} under {half} autocast"


def _because(reasons: list[str]) -> str:
    return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


class CopyMaker:
    """Makes the best copy of a model.

    Args:
        model: the live model, in the mode in which it is attacked.
        live: its forward.
        options: of the engine, with `shadow` on.
        precision: "fp32", "tf32", "bf16" or "fp16".
        half: torch.bfloat16 or torch.float16; None for the other precisions.

    Attributes:
        reasons: why better kinds of copies, or all of them, were rejected.
    """

    def __init__(
        self,
        model: nn.Module,
        live: Forward,
        options: EngineOptions,
        precision: str,
        half: torch.dtype | None,
    ) -> None:
        # A module made by torch.compile calls the original module, and so would its copy: copy the original instead.
        compiled = "_orig_mod" in model._modules
        self._model = model.get_submodule("_orig_mod") if compiled else model
        self._live, self._options = live, options
        self._precision, self._half = precision, half
        self.reasons: list[str] = []

    def make(self, x: Tensor) -> ChosenSource | None:
        """The best copy that matches the live model on some of the images x [N, ...]; None if there is none."""
        some = x[:IMAGES].contiguous()
        program = self._options.fold and not self._options.compile
        try:
            with preserved_rng(x.device):
                # A first forward lets the model fill tables in global variables before it is traced.
                with torch.no_grad():
                    true = logits_of_some(self._live, some)
                for make in (
                    (self._make_program, self._make_shadow) if program else (self._make_shadow,)
                ):
                    copied = self._checked(make, some, true)
                    if copied is not None:
                        return copied
        except Unshadowable as reason:
            self.reasons.append(str(reason))
        return None

    def _checked(
        self, make: Callable[[Tensor], ChosenSource], some: Tensor, true: Tensor
    ) -> ChosenSource | None:
        """Make a copy and compare it; None, with a reason, if it fails. Raises Unshadowable if no kind can match."""
        try:
            made = make(some)
        except Unshadowable as reason:
            self.reasons.append(str(reason))
            made = None
        with torch.no_grad():
            check_deterministic(self._live, some, true)
        if made is None:
            return None
        try:
            assert made.copied_forward is not None
            with torch.no_grad():
                check_forward(made.copied_forward, some, true)
            check_gradients(made.source, self._live, some, self._precision, self._half)
        except Unshadowable as reason:
            self.reasons.append(str(reason))
            return None
        return made

    def _make_program(self, x: Tensor) -> ChosenSource:
        program = Program(
            self._model, x, dtype=self._half, channels_last=self._options.channels_last
        )
        rest = f", {len(program.by_autograd)} calls by autograd" if program.by_autograd else ""
        kind = self._half or "its own precision"
        what = f"a copy in {kind}{rest}, with {program.folded} BatchNorm layers folded"
        return ChosenSource(program, program.copied_forward, what)

    def _make_shadow(self, x: Tensor) -> ChosenSource:
        half = self._half
        shadow = Shadow(self._model, dtype=half, channels_last=self._options.channels_last)
        shadow.refresh()
        call = torch.compile(shadow.module) if self._options.compile else shadow.module
        source = ByAutograd(call, dtype=half, refresh=shadow.refresh)
        return ChosenSource(
            source, shadow.copied_forward, f"a copy in {half or 'its own precision'}, not folded"
        )
