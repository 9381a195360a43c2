"""The paper's Tables 1 to 6 as data: their methods and numbers, their columns, and how to find these in an evaluation.

Source: Balaji, Goldstein and Hoffman 2019. The paper contradicts itself in one place: IAAT's natural accuracy with
WideResNet-32-10 on CIFAR-10 is 91.34 in Table 1, and 90.67 in Tables 4 and 6; each table here has its own number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from iaat_fast.evaluate.results import Evaluation, Measurement, targets
from iaat_fast.methods import IAAT, NO_WARMUP


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Args:
        key: its short name, `pgd10`.
        head: its heading; numbers are in percent unless it says otherwise.
        pick: finds the measurement in an evaluation.
        settings: the paper's settings of the attack ("eps", "steps", ...); {} for a column without an attack.
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
    """A function that finds the measurement of a kind (in the part of that name) with certain settings.

    Args:
        kind: pgd, transfer or autoattack.
        exactly: settings that it must have.
        like: settings to prefer: of several, the measurement at the nearest radius, then with most of these settings.
    """

    def pick(evaluation: Evaluation) -> Measurement | None:
        found = [
            m
            for m in attacks_of(evaluation, kind)
            if all(has(m, name, value) for name, value in (exactly or {}).items())
        ]

        def distance(m: Measurement) -> tuple[float, int]:
            others = sum(not has(m, name, value) for name, value in (like or {}).items())
            return round(abs(m.row["eps"] - (like or {}).get("eps", m.row["eps"])), 6), others

        return min(found, key=distance, default=None)

    return pick


def attacks_of(evaluation: Evaluation, kind: str) -> list[Measurement]:
    """The measurements of a kind in the part of that name; of AutoAttack, whose versions are parts, all."""
    return evaluation.of(kind, None if kind == "autoattack" else kind)


ROUNDING = 1e-6
"""Distances that differ by at most this are the same."""


def has(m: Measurement, name: str, value: Any) -> bool:
    """Whether a measurement was made with this setting."""
    if name == "targeted":
        return targets(m.row) == value
    if name in ("eps", "alpha"):
        return abs(float(m.row[name]) - value) <= ROUNDING
    if name == "version":
        return version_of(m) == value
    return bool(m.row.get(name) == value)


def version_of(m: Measurement) -> str:
    """The version of AutoAttack."""
    return str(m.row.get("version", "standard"))


def _corruptions(evaluation: Evaluation) -> Measurement | None:
    """The row of the corruptions; if there are several, that of the published files."""
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
            # The paper gives no number of restarts here: one is preferred.
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The content of a table of the paper.

    Args:
        methods: its methods; () for all that are not in `needs` of another table of the data set.
        needs: the method without whose runs the table is left out.
    """

    number: int
    dataset: str
    title: str
    columns: tuple[Column, ...]
    methods: tuple[str, ...] = ()
    needs: str | None = None


WARMUP = (NO_WARMUP, IAAT)
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
        needs=NO_WARMUP,
    ),
    Plan(
        number=5,
        dataset="cifar100",
        title="Effect of the warm-up on CIFAR-100",
        columns=CIFAR_COLUMNS,
        methods=WARMUP,
        needs=NO_WARMUP,
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

TABLES: dict[int, dict[str, dict[str, tuple[float, ...]]]] = {
    1: {
        "resnet18": {
            "clean": (94.21, 0.02, 0.00, 0.00, 3.03, 72.71),
            "adv": (83.20, 43.79, 42.30, 42.36, 59.80, 73.73),
            "iaat": (87.26, 43.08, 41.16, 41.16, 59.87, 78.82),
        },
        "wrn32-10": {
            "clean": (95.50, 0.05, 0.00, 0.00, 5.02, 78.35),
            "adv": (86.85, 46.86, 44.82, 44.84, 62.77, 77.99),
            "iaat": (91.34, 48.53, 46.50, 46.54, 58.20, 83.13),
        },
    },
    2: {
        "resnet18": {
            "clean": (74.88, 0.02, 0.00, 0.01, 1.81),
            "adv": (55.11, 20.69, 19.68, 19.91, 35.57),
            "iaat": (63.90, 18.50, 17.10, 17.11, 35.74),
        },
        "wrn32-10": {
            "clean": (79.91, 0.01, 0.00, 0.00, 1.20),
            "adv": (59.58, 26.24, 25.47, 25.49, 38.10),
            "iaat": (68.80, 26.17, 24.22, 24.36, 35.18),
        },
    },
    3: {
        "imagenet-resnet50": {
            "clean": (75.80, 0.64, 0.18, 0.00, 0.00, 76.69),
            "adv": (50.99, 50.89, 49.11, 44.71, 35.82, 95.48),
            "iaat": (62.71, 61.52, 54.63, 39.90, 22.72, 85.21),
        },
        "imagenet-resnet101": {
            "clean": (77.10, 0.83, 0.12, 0.00, 0.00, 70.37),
            "adv": (55.42, 55.11, 53.07, 48.35, 39.08, 91.45),
            "iaat": (65.29, 63.83, 56.62, 41.51, 23.91, 79.52),
        },
        "imagenet-resnet152": {
            "clean": (77.60, 0.57, 0.08, 0.00, 0.00, 69.27),
            "adv": (57.26, 56.77, 54.75, 49.86, 40.40, 89.31),
            "iaat": (67.44, 65.97, 59.28, 45.01, 27.85, 78.53),
        },
    },
    4: {
        "resnet18": {
            "iaat-no-warmup": (89.62, 40.55, 38.15, 38.08, 58.89, 81.10),
            "iaat": (87.26, 43.08, 41.16, 41.16, 59.87, 78.82),
        },
        "wrn32-10": {
            "iaat-no-warmup": (92.62, 45.12, 41.08, 41.11, 53.08, 84.92),
            "iaat": (90.67, 48.53, 46.50, 46.54, 58.20, 83.13),
        },
    },
    5: {
        "resnet18": {
            "iaat-no-warmup": (68.34, 14.76, 13.29, 13.30, 32.39),
            "iaat": (63.90, 18.50, 17.10, 17.11, 35.74),
        },
        "wrn32-10": {
            "iaat-no-warmup": (75.48, 18.14, 13.78, 13.71, 24.00),
            "iaat": (68.80, 26.17, 24.22, 24.36, 35.18),
        },
    },
    6: {
        "resnet18": {
            "mixup": (89.47, 42.60, 38.42, 38.49, 59.48),
            "iaat": (87.26, 43.08, 41.16, 41.16, 59.87),
        },
        "wrn32-10": {
            "mixup": (92.57, 45.01, 36.60, 36.44, 63.57),
            "iaat": (90.67, 48.53, 46.50, 46.54, 58.20),
        },
    },
}
"""Accuracies in percent, and mCE, by table, network and method, in the order of the columns; CIFAR-100 and Table 6
have no corruptions."""

_TWICE = "The paper prints 91.34 in Table 1 and 90.67 in Tables 4 and 6 for this same model."
REMARKS: dict[tuple[int, str, str, str], str] = {
    (table, "wrn32-10", "iaat", "natural"): _TWICE for table in (1, 4, 6)
}
"""Footnotes of printed numbers, by table, network, method and column."""

EPOCHS: dict[str, int] = {
    "resnet18": 200,
    "wrn32-10": 110,
    "imagenet-resnet50": 110,
    "imagenet-resnet101": 110,
    "imagenet-resnet152": 110,
}
"""Epochs that the paper trains each network (Tables 7 and 8)."""

TEST_IMAGES: dict[str, int] = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 50_000}


def figures(table: int, network: str) -> dict[str, dict[str, float]]:
    """The numbers of a table for a network, by method and column; {} if it has no such network.

    Args:
        table: 1 to 6.
        network: "resnet18", "wrn32-10", "imagenet-resnet50", "imagenet-resnet101" or "imagenet-resnet152".
    """
    columns = IMAGENET_COLUMNS if table == 3 else (*CIFAR_COLUMNS, CORRUPTIONS)
    keys = [column.key for column in columns]
    rows = TABLES[table].get(network, {})
    return {method: dict(zip(keys, values, strict=False)) for method, values in rows.items()}
