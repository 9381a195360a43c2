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
    check_deterministic,
    check_forward,
    check_gradients,
    logits_of_some,
)
from iaat_fast.attacks.model.snapshot import preserved_rng
from iaat_fast.attacks.options import EngineOptions


class ChosenSource(NamedTuple):
    """What gradients come from."""

    source: Source
    traced: Forward | None
    """Of a copy: its forward in the live model's precision, on the live weights."""
    description: str


class CopyMaker:
    """Makes the best copy of a model.

    Args:
        model: in the mode in which it is attacked.
        live: its forward.
        options: of the engine, with a shadow.
        precision, half: "bf16" and torch.bfloat16, say; None for a precision that is no half one.

    Attributes:
        reasons: why there is none, or no better one.
    """

    def __init__(
        self,
        model: nn.Module,
        live: Forward,
        options: EngineOptions,
        precision: str,
        half: torch.dtype | None,
    ) -> None:
        # What torch.compile makes of a module calls the live one; its copy would, too.
        compiled = "_orig_mod" in model._modules
        self._model = model.get_submodule("_orig_mod") if compiled else model
        self._live, self._options = live, options
        self._precision, self._half = precision, half
        self.reasons: list[str] = []

    def make(self, x: Tensor) -> ChosenSource | None:
        """A copy that gives what the live model gives for some of the images x; None where there is none."""
        some = x[:IMAGES].contiguous()
        program = self._options.fold and not self._options.compile
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

    def _checked(
        self, make: Callable[[Tensor], ChosenSource], some: Tensor, true: Tensor
    ) -> ChosenSource | None:
        """Raises Unshadowable where no kind of copy would do."""
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
            assert made.traced is not None
            with torch.no_grad():
                check_forward(made.traced, some, true)
            check_gradients(made.source, self._live, some, self._precision, self._half)
        except Unshadowable as reason:
            self.reasons.append(str(reason))
            return None
        return made

    def _lowered(self, x: Tensor) -> ChosenSource:
        program = Program(
            self._model, x, dtype=self._half, channels_last=self._options.channels_last
        )
        rest = f", {len(program.by_autograd)} calls by autograd" if program.by_autograd else ""
        kind = self._half or "its own precision"
        what = f"a copy in {kind}{rest}, with {program.folded} BatchNorm layers folded"
        return ChosenSource(program, program.traced, what)

    def _copied(self, x: Tensor) -> ChosenSource:
        half = self._half
        shadow = Shadow(self._model, dtype=half, channels_last=self._options.channels_last)
        shadow.refresh()
        call = torch.compile(shadow.module) if self._options.compile else shadow.module
        source = ByAutograd(call, dtype=half, refresh=shadow.refresh)
        return ChosenSource(
            source, shadow.traced, f"a copy in {half or 'its own precision'}, not folded"
        )
