"""What each table of the paper holds: its columns, where an evaluation has them, its methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from iaat_fast.evaluate.results import Evaluation, Measurement, targets
from iaat_fast.report import naming
from iaat_fast.report.groups import slug


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Args:
        key: as in `paper.CIFAR_COLUMNS` and `paper.IMAGENET_COLUMNS`.
        head: what stands above it; figures in percent unless it says otherwise.
        pick: finds the measurement in an evaluation.
        settings: what the paper measures with ("eps", "steps", ...); {} where there is nothing to set.
    """

    key: str
    head: str
    pick: Callable[[Evaluation], Measurement | None]
    settings: dict[str, Any] = field(default_factory=dict)


def _natural(evaluation: Evaluation) -> Measurement | None:
    return next(iter(evaluation.of("natural")), None)


def pick_attack(
    kind: str, *, exactly: dict[str, Any] | None = None, like: dict[str, Any] | None = None
) -> Callable[[Evaluation], Measurement | None]:
    """The measurement of a kind (and of the part of that name) that has some settings.

    Args:
        kind: pgd, transfer or autoattack.
        exactly: settings that it must have.
        like: of those that are left the one at the nearest radius is taken, then the one with most of these.
    """

    def pick(evaluation: Evaluation) -> Measurement | None:
        found = [
            m
            for m in evaluation.of(kind, kind)
            if all(has(m, name, value) for name, value in (exactly or {}).items())
        ]

        def distance(m: Measurement) -> tuple[float, int]:
            others = sum(not has(m, name, value) for name, value in (like or {}).items())
            return round(abs(m.row["eps"] - (like or {}).get("eps", m.row["eps"])), 6), others

        return min(found, key=distance, default=None)

    return pick


ROUNDING = 1e-6
"""Distances that differ by less are the same."""


def has(m: Measurement, name: str, value: Any) -> bool:
    """Whether a measurement was made with this setting."""
    if name == "targeted":
        return targets(m.row) == value
    if name in ("eps", "alpha"):
        return abs(float(m.row[name]) - value) <= ROUNDING
    return bool(m.row[name] == value)


def _corruptions(evaluation: Evaluation) -> Measurement | None:
    """The published files' where there are both."""
    found = evaluation.of("corruptions")
    return max(found, key=lambda m: m.row.get("source") == "official", default=None)


def _mce(evaluation: Evaluation) -> Measurement | None:
    found = _corruptions(evaluation)
    return found if found is not None and found.row.get("mce") is not None else None


NATURAL = Column(key="natural", head="Natural", pick=_natural)
CORRUPTIONS = Column(key="corruptions", head="Corruptions", pick=_corruptions)
_CIFAR = {"eps": 8 / 255, "alpha": 2 / 255, "targeted": False}
_TRANSFER = {**_CIFAR, "steps": 1000, "restarts": 2}
_IMAGENET = {"alpha": 1 / 255, "targeted": "random"}

CIFAR_COLUMNS = (
    NATURAL,
    *(
        Column(
            key=f"pgd{steps}",
            head=f"PGD-{steps}",
            pick=pick_attack(
                "pgd", exactly={"steps": steps}, like={**_CIFAR, "restarts": restarts}
            ),
            settings={**_CIFAR, "restarts": restarts},
        )
        for steps, restarts in ((10, 5), (100, 5), (1000, 2))
    ),
    Column(
        key="transfer",
        head="Transfer PGD-1000",
        pick=pick_attack("transfer", like=_TRANSFER),
        settings=_TRANSFER,
    ),
)
IMAGENET_COLUMNS = (
    NATURAL,
    *(
        Column(
            key=f"eps{radius}",
            head=f"PGD-1000, ε = {radius}",
            # The paper names no restarts here: where there are several, those of one are shown.
            pick=pick_attack(
                "pgd",
                exactly={"steps": 1000, "eps": radius / 255},
                like={**_IMAGENET, "restarts": 1},
            ),
            settings=_IMAGENET,
        )
        for radius in (4, 8, 12, 16)
    ),
    Column(key="mce", head="mCE (↓, not %)", pick=_mce),
)


def measured_columns(evaluations: Sequence[Evaluation], kinds: Sequence[str]) -> tuple[Column, ...]:
    """A column for every setting in which some evaluation has measured attacks of these kinds."""
    columns: list[Column] = []
    for kind in kinds:
        found = {m.setting: m for e in evaluations for m in e.of(kind, kind)}
        steps = {naming.pixels(m.row["alpha"]) for m in found.values() if "alpha" in m.row}
        settings: dict[str, dict[str, Any]] = {}
        for _, m in sorted(found.items(), key=lambda item: _order(item[1])):
            names = ("eps",) if kind == "autoattack" else (*SETTINGS, "targeted")
            setting = {
                name: targets(m.row) if name == "targeted" else m.row[name] for name in names
            }
            settings.setdefault(_head(kind, setting, with_step=len(steps) > 1), setting)
        columns += [
            Column(
                key=kind if kind != "pgd" and len(settings) == 1 else slug(head),
                head=head,
                pick=pick_attack(kind, exactly=setting),
            )
            for head, setting in settings.items()
        ]
    return tuple(columns)


SETTINGS = ("eps", "alpha", "steps", "restarts")


def _order(m: Measurement) -> tuple[float, ...]:
    return tuple(m.row[name] for name in ("eps", "steps", "restarts", "alpha") if name in m.row)


def _head(kind: str, setting: dict[str, Any], *, with_step: bool) -> str:
    """`PGD-10 × 5, ε = 8`."""
    radius = f"ε = {naming.pixels(setting['eps'])}"
    if kind == "autoattack":
        return f"AutoAttack, {radius}"
    head = f"PGD-{setting['steps']} × {setting['restarts']}, {radius}"
    head = f"Transfer {head}" if kind == "transfer" else head
    head += f", step {naming.pixels(setting['alpha'])}" if with_step else ""
    return f"{head}, random targets" if setting["targeted"] else head


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a table of the paper holds.

    Args:
        methods: its methods; () for all that no other table of the data set has to itself.
        needs: the method that must have been run for the table to say anything.
    """

    number: int
    dataset: str
    title: str
    columns: tuple[Column, ...]
    methods: tuple[str, ...] = ()
    needs: str | None = None


WARMUP = (naming.NO_WARMUP, "iaat")
PLANS = (
    Plan(
        number=1,
        dataset="cifar10",
        title="Robustness on CIFAR-10",
        columns=(*CIFAR_COLUMNS, CORRUPTIONS),
    ),
    Plan(number=2, dataset="cifar100", title="Robustness on CIFAR-100", columns=CIFAR_COLUMNS),
    Plan(number=3, dataset="imagenet", title="Robustness on ImageNet", columns=IMAGENET_COLUMNS),
    Plan(
        number=4,
        dataset="cifar10",
        title="Effect of the warm-up on CIFAR-10",
        columns=(*CIFAR_COLUMNS, CORRUPTIONS),
        methods=WARMUP,
        needs=naming.NO_WARMUP,
    ),
    Plan(
        number=5,
        dataset="cifar100",
        title="Effect of the warm-up on CIFAR-100",
        columns=CIFAR_COLUMNS,
        methods=WARMUP,
        needs=naming.NO_WARMUP,
    ),
    Plan(
        number=6,
        dataset="cifar10",
        title="Comparison with mixup on CIFAR-10",
        columns=CIFAR_COLUMNS,
        methods=("mixup", "iaat"),
        needs="mixup",
    ),
)
