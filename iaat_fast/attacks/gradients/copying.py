"""The best copy of a model to take gradients from: a program, else a shadow, else none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iaat_fast.attacks.gradients.program import Program
from iaat_fast.attacks.gradients.shadow import Shadow, Unshadowable
from iaat_fast.attacks.gradients.source import ByAutograd, Forward, Source
from iaat_fast.attacks.gradients.verify import (
    IMAGES,
    compare,
    compare_again,
    compare_forwards,
    logits_of_some,
)
from iaat_fast.attacks.model.snapshot import preserved_rng
from iaat_fast.attacks.options import EngineOptions


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
        some = x[:IMAGES].contiguous()
        program = self._levers.fold and not self._levers.compile
        try:
            with preserved_rng(x.device):
                # Tables that it keeps in globals are there before it is traced.
                with torch.no_grad():
                    true = logits_of_some(self._live, some)
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
            compare_again(self._live, some, true)
        if made is None:
            return None
        try:
            assert made.traced is not None
            with torch.no_grad():
                compare_forwards(made.traced, some, true)
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
