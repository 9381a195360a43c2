"""The flags of `python -m iaat_fast.train`: the flag of each field, and the flags that repeat a run."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

from iaat_fast import units
from iaat_fast.command_line import Pixels
from iaat_fast.methods import reads
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.overrides import FAST, PARTS
from iaat_fast.train.presets import preset


def _flags() -> dict[str, tuple[str, bool]]:
    """The flag of each field, such as "optim.epochs", and whether its unit is 1/255."""
    found = {}
    for part, kind in PARTS.items():
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            marks = getattr(hints[field.name], "__metadata__", ())
            given = (getattr(mark, "name", None) for mark in marks)
            name = next((name for name in given if name), field.name)
            pixels = get_args(Pixels)[1] in marks
            found[f"{part}.{field.name}"] = (f"--{name.replace('_', '-')}", pixels)
    return found


_FLAGS = _flags()

FLAGS = {
    **{field: flag for field, (flag, _) in _FLAGS.items()},
    **{name: f"--{name}" for name in ("method", "protocol", "device", "limit")},
    "path": "--data",
}
"""The flag of each field, such as "optim.epochs", and of each argument that errors name, such as "path"; see
`command_line.with_flags`."""

_NOT_REPEATED = ("run.out", "run.snapshot_epochs")


def own_flags(config: TrainConfig, method: str) -> list[str]:
    """The flags, as words, by which a run differs from its preset and which `method` reads."""
    default = preset(config.preset, method=config.method, protocol=config.protocol)
    words = [] if config.protocol == "paper" else ["--protocol", config.protocol]
    for field, (flag, pixels) in _FLAGS.items():
        part, name = field.split(".")
        value, usual = (getattr(getattr(one, part), name) for one in (config, default))
        chosen_here = name in FAST.get(part, {}) and (config.run.fast or usual == "auto")
        if (
            value != usual
            and value is not None
            and not chosen_here
            and field not in _NOT_REPEATED
            and all(reads(each, field) for each in (config.method, method))
        ):
            words += _words(flag, value, pixels=pixels)
    return words


def _words(flag: str, value: Any, *, pixels: bool) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [flag, *(units.to_text(one, 10) if pixels else str(one) for one in values)]
