"""The figures of the paper's Tables 1 to 6 as data: accuracies in percent, mCE as printed.

Source: Balaji, Goldstein and Hoffman 2019. The paper contradicts itself in one place: IAAT's natural accuracy with
WideResNet-32-10 on CIFAR-10 is 91.34 in Table 1, and 90.67 in Tables 4 and 6; each table here has what it prints.
"""

from __future__ import annotations

CIFAR_COLUMNS = ("natural", "pgd10", "pgd100", "pgd1000", "transfer", "corruptions")
IMAGENET_COLUMNS = ("natural", "eps4", "eps8", "eps12", "eps16", "mce")

Rows = dict[str, dict[str, tuple[float, ...]]]
"""Network, method, figures in the order of the columns (CIFAR-100 and Table 6 have no corruptions)."""

TABLES: dict[int, Rows] = {
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

_TWICE = "The paper prints 91.34 in Table 1 and 90.67 in Tables 4 and 6 for this same model."
REMARKS: dict[tuple[int, str, str, str], str] = {
    (table, "wrn32-10", "iaat", "natural"): _TWICE for table in (1, 4, 6)
}
"""What to say of a figure, by table, network, method and column."""

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
    """What a table prints for a network: by method, by column; {} where it has no such network.

    Args:
        table: 1 to 6.
        network: "resnet18", "wrn32-10", "imagenet-resnet50", "imagenet-resnet101" or "imagenet-resnet152".
    """
    columns = IMAGENET_COLUMNS if table == 3 else CIFAR_COLUMNS
    rows = TABLES[table].get(network, {})
    return {method: dict(zip(columns, values, strict=False)) for method, values in rows.items()}
