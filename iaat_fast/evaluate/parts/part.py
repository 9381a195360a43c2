"""What a part of an evaluation works with: the model, what to measure, the record, how to save and to tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iaat_fast.evaluate.corruptions import CorruptedImages
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.record import Record
from iaat_fast.evaluate.suites import Suite
from iaat_fast.evaluate.transfer import Surrogate

Tell = Callable[[str, float, float], None]


@dataclass(kw_only=True)
class Context:
    """What a part works with.

    Args:
        target: model and samples.
        suite: what is measured.
        parts: the parts that were asked for.
        record: where rows go.
        eps, alpha: radii and step size, on the [0, 1] scale.
        seed: of all randomness.
        batch_size: samples at once.
        any_iterate: the rule by which samples fall, see `SharedPGD`.
        surrogate: the model that transferred attacks are crafted on.
        corrupted: the images of the part "corruptions".
        adversarial: files of saved examples to score.
        save_adversarial: whether to keep the examples.
        save_every: seconds between two saves of the progress.
        tell: called as tell(name, done, remaining), in units of the part's own choice: gradient
            passes of an attack, images of corruptions.
    """

    target: EvalTarget
    suite: Suite
    parts: tuple[str, ...]
    record: Record
    eps: tuple[float, ...]
    alpha: float
    seed: int = 0
    batch_size: int = 256
    any_iterate: bool = False
    surrogate: Surrogate | None = None
    corrupted: CorruptedImages | None = None
    adversarial: tuple[Path, ...] = ()
    save_adversarial: bool = False
    save_every: float = 30.0
    tell: Tell | None = None
    _saved: float = field(default_factory=time.monotonic)

    @property
    def save_is_due(self) -> bool:
        """Whether the last save is `save_every` seconds ago."""
        return time.monotonic() - self._saved >= self.save_every

    def save(self, name: str, state: Any) -> None:
        """Keep a part's state for resuming."""
        self.record.save_progress(name, state)
        self._saved = time.monotonic()
