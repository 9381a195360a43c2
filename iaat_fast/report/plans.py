"""What each table of the paper holds: its columns, where an evaluation has them, its methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from iaat_fast.report import naming
from iaat_fast.report.records import Evaluation, Measurement


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


def pick_pgd(
    *, steps: int, eps: float, only: bool = False
) -> Callable[[Evaluation], Measurement | None]:
    """The PGD measurement of these steps at this radius, or at the nearest that there is unless `only`."""

    def pick(evaluation: Evaluation) -> Measurement | None:
        found = [m for m in evaluation.of("pgd", "pgd") if m.row["steps"] == steps]
        nearest = min(found, key=lambda m: abs(m.row["eps"] - eps), default=None)
        if nearest is None or (only and abs(nearest.row["eps"] - eps) > ROUNDING):
            return None
        return nearest

    return pick


ROUNDING = 1e-6
"""Distances that differ by less are the same."""


def pick_kind(kind: str) -> Callable[[Evaluation], Measurement | None]:
    return lambda evaluation: next(iter(evaluation.of(kind)), None)


def _mce(evaluation: Evaluation) -> Measurement | None:
    found = pick_kind("corruptions")(evaluation)
    return found if found is not None and found.row.get("mce") is not None else None


NATURAL = Column(key="natural", head="Natural", pick=_natural)
CORRUPTIONS = Column(key="corruptions", head="Corruptions", pick=pick_kind("corruptions"))
AUTOATTACK = Column(key="autoattack", head="AutoAttack", pick=pick_kind("autoattack"))
_EPS, _ALPHA = 8 / 255, 2 / 255

CIFAR_COLUMNS = (
    NATURAL,
    *(
        Column(
            key=f"pgd{steps}",
            head=f"PGD-{steps}",
            pick=pick_pgd(steps=steps, eps=_EPS),
            settings={"eps": _EPS, "alpha": _ALPHA, "restarts": restarts, "targeted": False},
        )
        for steps, restarts in ((10, 5), (100, 5), (1000, 2))
    ),
    Column(
        key="transfer",
        head="Transfer PGD-1000",
        pick=pick_kind("transfer"),
        settings={"eps": _EPS, "alpha": _ALPHA, "steps": 1000, "restarts": 2, "targeted": False},
    ),
)
IMAGENET_COLUMNS = (
    NATURAL,
    *(
        Column(
            key=f"eps{radius}",
            head=f"PGD-1000, ε = {radius}",
            pick=pick_pgd(steps=1000, eps=radius / 255, only=True),
            settings={"alpha": 1 / 255, "targeted": "random"},
        )
        for radius in (4, 8, 12, 16)
    ),
    Column(key="mce", head="mCE (↓, not %)", pick=_mce),
)


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
