"""The types of the parts: `Part`, one kind of measurement; `Settings` of an evaluation; `Context` of a measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iaat_fast.data import Samples
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.record import Record
from iaat_fast.evaluate.suites import Suite
from iaat_fast.evaluate.transfer import Surrogate

Tell = Callable[[str, float, float], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a suite is measured: the keywords of `evaluate_suite`, which says what each means."""

    folder: Path | None = None
    parts: tuple[str, ...] | None = None
    seed: int = 0
    batch_size: int = 256
    any_iterate: bool = False
    surrogate: Surrogate | None = None
    corruptions: Path | None = None
    adversarial: tuple[Path, ...] = ()
    save_adversarial: bool = False
    overwrite: bool = False
    save_every: float = 30.0
    autoattack_precision: str = "fp32"
    autoattack_engine: str = "auto"
    tell: Tell | None = None


@dataclass(kw_only=True)
class Context:
    """What a part is given to measure with.

    Args:
        target: model and samples.
        suite: what is measured, with its radii and step size.
        settings: how; `settings.parts` are all parts that are measured.
        record: to which rows are added.
        prepared: what each part's `prepare` returned, by name.
    """

    target: EvalTarget
    suite: Suite
    settings: Settings
    record: Record
    prepared: dict[str, Any]
    _saved: float = field(default_factory=time.monotonic)

    @property
    def save_is_due(self) -> bool:
        """Whether the last save was at least `settings.save_every` seconds ago."""
        return time.monotonic() - self._saved >= self.settings.save_every

    def save(self, name: str, state: Any) -> None:
        """Save a part's state, to resume from."""
        self.record.save_progress(name, state)
        self._saved = time.monotonic()

    def tell(self, name: str, done: float, remaining: float) -> None:
        """Report the progress of a part, in its own unit: gradient passes of an attack, images of corruptions."""
        if self.settings.tell is not None:
            self.settings.tell(name, done, remaining)


def _lacks_nothing(given: Collection[str], split: Samples | None) -> str | None:
    return None


def _opens_nothing(target: EvalTarget, settings: Settings) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of measurement.

    Args:
        name: what suites, `--parts` and its rows call it.
        help: what it measures, in a few words.
        measure: adds to `context.record` a row for each measurement that it does not have yet. An exception may stop
            it at any moment; it is then called again, with the record as it was left and what `context.save` kept.
            Parts that have the same function are measured by one call of it.
        lacks: called as lacks(given, split) with the fields of `Settings` that are given, and the samples if they are
            known. Returns a text that says what the part needs and is not given; None: nothing.
        prepare: called before anything is written: opens the part's files, and raises ValueError or OSError if they do
            not fit; what it returns is in `context.prepared`.
    """

    name: str
    help: str
    measure: Callable[[Context], None]
    lacks: Callable[[Collection[str], Samples | None], str | None] = _lacks_nothing
    prepare: Callable[[EvalTarget, Settings], Any] = _opens_nothing
