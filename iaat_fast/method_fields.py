"""Which fields of a configuration each training method reads: the one table of it, for training and for reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_WARMUP = "iaat-no-warmup"
"""The method iaat without a warm-up, which the paper lists as a method of its own."""

_PGD = ("steps", "targeted", "bn", "clamp_start", "precision", "engine")
_ANY_RADIUS = tuple(f"attack.{name}" for name in (*_PGD, "alpha", "alpha_rule"))
_FIXED_RADIUS = (*_ANY_RADIUS, "attack.eps")
_SELECTION = tuple(
    f"epsilon.{name}"
    for name in (
        "warmup_epochs",
        "gamma",
        "beta",
        "eps_min",
        "eps_min_bounds",
        "selection_steps",
        "strategy",
        "final",
        "clamp",
        "misclassified",
        "misclassified_input",
    )
)
_SNAPSHOTS = "run.snapshot_epochs"

READS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "adv": _FIXED_RADIUS,
    "mixup": (*_FIXED_RADIUS, "baseline.mixup_alpha"),
    "trades": (*_FIXED_RADIUS, "baseline.trades_beta"),
    "mart": (*_FIXED_RADIUS, "baseline.mart_beta"),
    "mma": (
        *(f"attack.{name}" for name in _PGD),
        *(f"baseline.mma_{n}" for n in ("d_max", "d_min", "step_scale", "bisections")),
        "baseline.mma_clean_weight",
        _SNAPSHOTS,
    ),
    NO_WARMUP: (*_ANY_RADIUS, *_SELECTION, _SNAPSHOTS),
    "iaat": (
        *_ANY_RADIUS,
        *_SELECTION,
        *("epsilon.eps_w", "epsilon.warmup_rule"),
        _SNAPSHOTS,
    ),
}
"""Fields of the parts that not all methods read, and `run.snapshot_epochs`, by method."""

# What was probably meant, for the methods that read it.
_RADII = ("attack.eps", "epsilon.eps_w", "baseline.mma_d_max")
_STEPS = ("attack.alpha", "baseline.mma_step_scale")
_WEIGHTS = ("baseline.trades_beta", "baseline.mart_beta")
_MEANT = {
    **dict.fromkeys(_RADII, _RADII),
    **dict.fromkeys(_STEPS, _STEPS),
    **dict.fromkeys((*_WEIGHTS, "epsilon.beta"), _WEIGHTS),
    "epsilon.eps_min": ("baseline.mma_d_min",),
    "baseline.mma_d_min": ("epsilon.eps_min",),
}


def method_key(config: Mapping[str, Any]) -> str:
    """The method of a flat configuration, `NO_WARMUP` for iaat without a warm-up."""
    method = str(config["method"])
    return NO_WARMUP if method == "iaat" and config.get("epsilon.warmup_epochs") == 0 else method


def reads(key: str, field: str) -> bool:
    """Whether a method, see `method_key`, looks at a field such as `attack.eps`; one not listed looks at all."""
    if key not in READS or not field.startswith(("attack.", "epsilon.", "baseline.", _SNAPSHOTS)):
        return True
    return field in READS[key]


def meant(key: str, field: str) -> tuple[str, ...]:
    """The fields that a method reads in place of one that it does not; () where it has none like it."""
    return tuple(name for name in _MEANT.get(field, ()) if reads(key, name))
