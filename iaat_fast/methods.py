"""The table of training methods, `ROWS`, which training, reports, plans and sweeps read.

A method is a row here and a class in `train/methods/<name>.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """The facts about a training method that need no class.

    Args:
        name: as `--method` takes it and `config.json` has it.
        label: what tables and figures call it.
        about: what it is, for the help of `--method`.
        radius: of the attack on training samples: "none" (no attack), "fixed" (`attack.eps`, the same for all samples)
            or "adaptive" (each sample has its own).
        reads: the configuration fields that it reads among those that only some methods read (see `METHOD_FIELDS`);
            None: all of them.
        colour: in figures, one of `report.figures.drawing.PALETTE`; None: one that no other method has.
        is_baseline: it is not in the paper's Tables 1 to 3, and a sweep trains it only if it is named.
        variant_of: set if this is another method in one setting, to that method's name. A variant is no choice of
            `--method`, but has a row of its own in tables.
        when: of a variant, its setting, pairs of fields and values.
    """

    name: str
    label: str
    about: str = ""
    radius: Literal["none", "fixed", "adaptive"] = "fixed"
    reads: tuple[str, ...] | None = None
    colour: str | None = None
    is_baseline: bool = False
    variant_of: str | None = None
    when: tuple[tuple[str, Any], ...] = ()


IAAT = "iaat"
"""Instance adaptive adversarial training, the default method."""

NO_WARMUP = "iaat-no-warmup"
"""IAAT without a warm-up, which the paper's tables list as a method of its own."""

ADV = "adv"
"""Adversarial training at a fixed radius. The paper trains it at several radii: the radius is part of its name in
tables, and its runs form a line in figures."""

_WARMUP_EPOCHS = "epsilon.warmup_epochs"

METHOD_FIELDS = ("attack.", "epsilon.", "baseline.", "run.snapshot_epochs")
"""Prefixes of the configuration fields that only some methods read."""

_PGD = tuple(
    f"attack.{name}" for name in ("steps", "targeted", "bn", "clamp_start", "precision", "engine")
)
_ANY_RADIUS = (*_PGD, "attack.alpha", "attack.alpha_rule")
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
_WARMUP = ("epsilon.eps_w", "epsilon.warmup_rule")
_NOISE = ("attack.noise", "attack.project")
_SNAPSHOTS = "run.snapshot_epochs"
_AWP = ("baseline.awp_gamma", "baseline.awp_warmup_epochs")
_SINGLE_STEP = (
    *(field for field in _PGD if field != "attack.steps"),
    "attack.eps",
    *(f"baseline.nfgsm_{name}" for name in ("noise", "step", "project")),
    *_AWP,
)

_ROWS = (
    MethodRow(
        name="clean",
        label="Clean",
        about="no attack",
        radius="none",
        reads=(),
        colour="green",
    ),
    MethodRow(
        name=ADV,
        label="Adversarial",
        about="adversarial training at a fixed radius (Madry et al. 2018)",
        reads=(*_FIXED_RADIUS, *_NOISE, *_AWP),
        colour="blue",
    ),
    MethodRow(
        name="mixup",
        label="Mixup",
        about="interpolated adversarial training (Lamb et al. 2019)",
        reads=(*_FIXED_RADIUS, *_NOISE, "baseline.mixup_alpha", *_AWP),
        colour="yellow",
        is_baseline=True,
    ),
    MethodRow(
        name="trades",
        label="TRADES",
        about="TRADES (Zhang et al. 2019)",
        reads=(*_FIXED_RADIUS, "baseline.trades_beta", *_AWP),
        is_baseline=True,
    ),
    MethodRow(
        name="mart",
        label="MART",
        about="MART (Wang et al. 2020)",
        reads=(*_FIXED_RADIUS, "baseline.mart_beta", *_AWP),
        is_baseline=True,
    ),
    MethodRow(
        name="fast-at",
        label="Fast-AT",
        reads=_SINGLE_STEP,
        is_baseline=True,
        variant_of="nfgsm",
        when=(("baseline.nfgsm_project", True), ("baseline.nfgsm_noise", 1.0)),
    ),
    MethodRow(
        name="nfgsm",
        label="N-FGSM",
        about="single-step training, N-FGSM (de Jorge et al. 2022), or with other noise, step and projection "
        "Fast-AT (Wong et al. 2020)",
        reads=_SINGLE_STEP,
        is_baseline=True,
    ),
    MethodRow(
        name="mma",
        label="MMA",
        about="max-margin training (Ding et al. 2020)",
        radius="adaptive",
        reads=(
            *_PGD,
            *(f"baseline.mma_{n}" for n in ("d_max", "d_min", "step_scale", "bisections")),
            "baseline.mma_clean_weight",
            *_AWP,
            _SNAPSHOTS,
        ),
        is_baseline=True,
    ),
    MethodRow(
        name="cat",
        label="CAT",
        about="customized adversarial training (Cheng et al. 2022)",
        radius="adaptive",
        reads=(
            *(field for field in _ANY_RADIUS if field != "attack.clamp_start"),
            *(f"baseline.cat_{n}" for n in ("eps_max", "eta", "c", "loss", "kappa")),
            *_AWP,
            _SNAPSHOTS,
        ),
        is_baseline=True,
    ),
    MethodRow(
        name=NO_WARMUP,
        label="IAAT (no warm-up)",
        radius="adaptive",
        reads=(*_ANY_RADIUS, *_NOISE, *_SELECTION, *_AWP, _SNAPSHOTS),
        colour="purple",
        variant_of=IAAT,
        when=((_WARMUP_EPOCHS, 0),),
    ),
    MethodRow(
        name=IAAT,
        label="IAAT",
        about="instance adaptive adversarial training (Balaji et al. 2019)",
        radius="adaptive",
        reads=(*_ANY_RADIUS, *_NOISE, *_SELECTION, *_WARMUP, *_AWP, _SNAPSHOTS),
        colour="orange",
    ),
)

ROWS: dict[str, MethodRow] = {row.name: row for row in _ROWS}
"""All rows, by name, in the order of tables and figures."""

_METHODS = sorted((row for row in _ROWS if row.variant_of is None), key=lambda row: row.is_baseline)
NAMES: tuple[str, ...] = tuple(row.name for row in _METHODS)
"""What `--method` takes, baselines last."""

COMPARED: tuple[str, ...] = tuple(row.name for row in _METHODS if not row.is_baseline)
"""The methods of the paper's Tables 1 to 3, which a sweep trains by default."""

HELP = "; ".join(f"{row.name}: {row.about}" for row in _METHODS) + "."
"""The help of `--method`."""

NOT_RECORDED: Mapping[str, Any] = {
    "attack.noise": 1.0,
    "attack.project": True,
    "baseline.awp_gamma": 0.0,
    "baseline.awp_warmup_epochs": 0,
}
"""Fields that runs of earlier versions have not recorded, with the values that their runs had in effect."""

_WITH_AWP = "-awp"

# For a field that a method does not read: fields of similar meaning, one of which was probably meant.
_RADII = ("attack.eps", "epsilon.eps_w", "baseline.mma_d_max", "baseline.cat_eps_max")
_GROWTH = ("epsilon.gamma", "baseline.cat_eta")
_STEPS = ("attack.alpha", "baseline.mma_step_scale", "baseline.nfgsm_step")
_NOISES = ("attack.noise", "baseline.nfgsm_noise")
_PROJECTIONS = ("attack.project", "baseline.nfgsm_project")
_WEIGHTS = ("baseline.trades_beta", "baseline.mart_beta")
_MEANT = {
    **dict.fromkeys(_RADII, _RADII),
    **dict.fromkeys(_GROWTH, _GROWTH),
    **dict.fromkeys(_STEPS, _STEPS),
    **dict.fromkeys(_NOISES, _NOISES),
    **dict.fromkeys(_PROJECTIONS, _PROJECTIONS),
    **dict.fromkeys((*_WEIGHTS, "epsilon.beta"), _WEIGHTS),
    "epsilon.eps_min": ("baseline.mma_d_min",),
    "baseline.mma_d_min": ("epsilon.eps_min",),
}


def row(name: str) -> MethodRow:
    """The row of a method, also of one with AWP (see `method_key`).

    For a name that a newer version has recorded, a row that reads all fields.
    """
    if name in ROWS:
        return ROWS[name]
    if name.endswith(_WITH_AWP):
        base = row(name.removesuffix(_WITH_AWP))
        return dataclasses.replace(base, name=name, label=f"{base.label} + AWP", colour=None)
    return MethodRow(name=name, label=name)


def method_key(config: Mapping[str, Any]) -> str:
    """The name of the row of a configuration (see `run_folder.flat`): its method, or a variant of it.

    With adversarial weight perturbation it ends in `-awp`: reports list such runs as a method of their own.
    """
    method = str(config["method"])
    key = next((each.name for each in _ROWS if _is_variant(each, method, config)), method)
    perturbed = reads(method, "baseline.awp_gamma") and config.get("baseline.awp_gamma")
    return key + _WITH_AWP if perturbed else key


def _is_variant(row: MethodRow, method: str, config: Mapping[str, Any]) -> bool:
    return row.variant_of == method and all(config.get(name) == value for name, value in row.when)


def base_key(key: str) -> str:
    """The key (see `method_key`) of the same method without AWP."""
    return key.removesuffix(_WITH_AWP)


def without_warmup(method: str) -> str | None:
    """The name of the variant of `method` without its warm-up; None for a method that has no warm-up."""
    when = ((_WARMUP_EPOCHS, 0),)
    return next(
        (each.name for each in _ROWS if each.variant_of == method and each.when == when), None
    )


def reads(name: str, field: str) -> bool:
    """Whether a method, or a variant of one, reads a field such as `attack.eps`."""
    found = row(name).reads
    return found is None or not field.startswith(METHOD_FIELDS) or field in found


def meant(name: str, field: str) -> tuple[str, ...]:
    """The fields that a method reads in place of `field`, which it does not read; () where it has none like it."""
    return tuple(other for other in _MEANT.get(field, ()) if reads(name, other))
