"""Changes to a configuration: overriding fields by name, and comparing the configurations of a resumed run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iaat_fast import validate
from iaat_fast.methods import NAMES, ROWS, meant, method_key, reads
from iaat_fast.run_folder import flat
from iaat_fast.train.config import TrainConfig

PARTS: dict[str, type] = {
    f.name: f.default_factory  # type: ignore[misc]
    for f in dataclasses.fields(TrainConfig)
    if f.default_factory is not dataclasses.MISSING
}
"""The parts of a configuration by name, e.g. `"attack": AttackConfig`."""

FREE = frozenset(
    {
        "data.path",
        "data.workers",
        "data.on_bad_image",
        "run.out",
        "optim.accumulate",
        "optim.graph",
        "run.device",
        "run.checkpoint_steps",
        "run.checkpoint_minutes",
        "run.snapshot_epochs",
        "run.tensorboard",
    }
)
"""Fields that may change when a run is resumed, because they are no part of the arithmetic. (A data
set may move but must be the same; another device or number of micro-batches takes the same steps with
different rounding.)"""

FAST: dict[str, dict[str, Any]] = {
    "attack": {"precision": "auto"},
    "epsilon": {"strategy": "auto"},
    "optim": {"amp": "auto"},
}
"""The fields that `run.fast` sets to "auto", see `hardware.resolved`."""

STEP_DECAY = ("optim.decay_epochs", "optim.decay_factor")
"""Fields that only the schedule "step" reads."""

_AUTO = (("attack", "precision"), ("attack", "engine"), ("epsilon", "strategy"), ("optim", "amp"))
"""Fields that may be "auto"."""


def override(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A copy of `config` with `changes`, which are nested by part as in `config.json`.

    >>> override(TrainConfig(), {"method": "adv", "optim": {"epochs": 3}}).optim.epochs
    3

    Fields that the method does not read are changed as well: see `refuse_unread`.
    If `run.fast` is switched on, the fields of `FAST` that are not among the changes become "auto".

    Raises:
        ValueError: a field that does not exist (the message names the nearest) or a bad value.
        TypeError: a value of the wrong type.
    """
    updated: dict[str, Any] = {}
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    for name, value in changes.items():
        validate.choice("configuration field", name, known)
        if name not in PARTS:
            updated[name] = value
            continue
        if not isinstance(value, Mapping):
            raise TypeError(f"{name}: {value!r}, expected a mapping of its fields")
        for inner in value:
            validate.choice(
                f"field of {name}", inner, [f.name for f in dataclasses.fields(PARTS[name])]
            )
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}
        updated[name] = dataclasses.replace(getattr(config, name), **plain)
    changed = dataclasses.replace(config, **updated)
    if changed.run.fast and not config.run.fast:
        left = {
            part: {name: auto for name, auto in fields.items() if name not in changes.get(part, {})}
            for part, fields in FAST.items()
        }
        return override(changed, left)
    return changed


def adopt(config: TrainConfig, other: TrainConfig) -> TrainConfig:
    """A copy of `config` in which every "auto" is replaced by the value that `other` has."""
    changes: dict[str, dict[str, Any]] = {}
    for part, name in _AUTO:
        if getattr(getattr(config, part), name) == "auto":
            changes.setdefault(part, {})[name] = getattr(getattr(other, part), name)
    return override(config, changes)


def differences(
    old: TrainConfig, new: TrainConfig, *, there: str = " there", given: str = " given"
) -> list[str]:
    """The fields, `FREE` ones excepted, in which two configurations differ, as text with both values.

    Fields that one of the two methods does not read are not compared.
    `there` and `given` are appended to the old and the new value, and say where each is from.
    """
    found = []
    before, after = flat(old.to_dict()), flat(new.to_dict())
    keys = {method_key(before), method_key(after)}
    for name, value in before.items():
        if not all(reads(key, name) for key in keys):
            continue
        if name not in FREE and after[name] != value:
            found.append(f"{name} ({value!r}{there}, {after[name]!r}{given})")
    return found


def refuse_unread(
    config: TrainConfig, given: Mapping[str, str], name: Callable[[str], str] = str
) -> None:
    """Refuse fields that were given explicitly and that neither the method nor the schedule of `config` reads.

    Args:
        config: the whole configuration.
        given: the fields given explicitly, such as "attack.eps", each with the words by which it was given.
        name: maps a field to what the caller calls it, such as its flag.

    Raises:
        ValueError: a field that is not read; the message names what to give instead.
    """
    key = method_key(flat(config.to_dict()))
    schedule = config.optim.lr_schedule
    for field, words in given.items():
        if field in STEP_DECAY and schedule != "step":
            raise ValueError(
                f"{words}: not read by the schedule {schedule!r}, expected {name('optim.lr_schedule')} step"
            )
        if reads(key, field):
            continue
        others = [name(other) for other in meant(key, field)]
        if others:
            expected = " or ".join(others)
        elif reads(config.method, field):
            expected = f"{name('epsilon.warmup_epochs')} of at least 1"
        else:
            methods = [other for other in ROWS if other in NAMES and reads(other, field)]
            expected = f"{name('method')} {' or '.join(methods)}"
        raise ValueError(f"{words}: not read by method {config.method!r}, expected {expected}")
