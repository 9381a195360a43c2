"""The names of methods, networks, data sets and variants in tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iaat_fast import methods, units

NETWORKS: dict[str, str] = {
    "digits-cnn": "CNN",
    "resnet18": "ResNet-18",
    "wrn32-10": "WideResNet-32-10",
    "imagenet-resnet50": "ResNet-50",
    "imagenet-resnet101": "ResNet-101",
    "imagenet-resnet152": "ResNet-152",
}
DATASETS: dict[str, str] = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "digits": "Digits",
}
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
PIXEL_FIELDS = frozenset(
    {
        "attack.eps",
        "attack.alpha",
        "epsilon.eps_w",
        "epsilon.gamma",
        "epsilon.eps_min",
        "baseline.mma_d_max",
        "baseline.mma_d_min",
        "baseline.cat_eps_max",
        "baseline.cat_eta",
    }
)
"""Fields that are distances in pixel values, written in units of 1/255."""


def method_order(key: str) -> tuple[int, str]:
    """Sort key of methods: the order of `methods.ROWS`, first without AWP; unknown methods come before IAAT."""
    known, base = list(methods.ROWS), methods.base_key(key)
    if base not in known:
        return known.index(methods.NO_WARMUP) - 1, key
    return known.index(base), key.removeprefix(base)


def network_name(config: dict[str, Any]) -> str:
    """The network, with width and depth if they are not its own: `ResNet-18, width 16`."""
    name = str(config["model.name"])
    parts = [NETWORKS.get(name, name)]
    for field in ("width", "depth"):
        if config.get(f"model.{field}") is not None:
            parts.append(f"{field} {config[f'model.{field}']}")
    return ", ".join(parts)


def dataset_name(name: str) -> str:
    """The data set as its authors write it."""
    return DATASETS.get(name, name)


def class_name(dataset: str, label: int) -> str:
    """The class of a label: its name for CIFAR-10, the digit for digits, else `class 17`."""
    if dataset == "cifar10" and label < len(CIFAR10_CLASSES):
        return CIFAR10_CLASSES[label]
    return str(label) if dataset == "digits" else f"class {label}"


def variant_name(config: dict[str, Any], fields: Sequence[str]) -> str:
    """The method with the fields that tell its variants apart: `Adversarial, ε = 8`.

    Args:
        config: a flat configuration.
        fields: what to name in addition to the method; for adversarial training the radius always is.
    """
    key = methods.method_key(config)
    method = methods.row(key)
    named = [field for field in fields if field not in dict(method.when)]
    if (
        methods.base_key(key) == methods.ADV
        and "attack.eps" not in named
        and "attack.eps" in config
    ):
        named.insert(0, "attack.eps")
    parts = [method.label]
    for field in named:
        value = config.get(field)
        short = "ε" if field == "attack.eps" else field
        parts.append(
            f"{short} = {units.to_text(value) if field in PIXEL_FIELDS and value is not None else value}"
        )
    return ", ".join(parts)
