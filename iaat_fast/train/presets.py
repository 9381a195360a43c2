"""Presets (the paper's Tables 7 and 8, and digits) and the fields that each protocol sets.

A protocol is only a set of defaults of configuration fields: the training loop does not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iaat_fast import validate
from iaat_fast.methods import IAAT
from iaat_fast.train.config import PROTOCOLS, Method, Protocol, TrainConfig
from iaat_fast.train.overrides import override, refuse_unread

Changes = Mapping[str, Mapping[str, Any]]

_TABLE7_ATTACK: Changes = {
    "attack": {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10},
    "epsilon": {"eps_w": 8 / 255, "gamma": 1.9 / 255, "beta": 0.1},
    "evaluation": {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10, "restarts": 5},
}
_TABLE7_RESNET18: Changes = {
    "model": {"name": "resnet18"},
    # As common reimplementations have it; MART's released code has 6, for wide networks.
    "baseline": {"mart_beta": 5.0},
    "attack": _TABLE7_ATTACK["attack"],
    "epsilon": {**_TABLE7_ATTACK["epsilon"], "warmup_epochs": 5},
    "optim": {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0002,
        "epochs": 200,
        "decay_epochs": (80, 140, 170),
        "decay_factor": 0.1,
        "batch_size": 128,
    },
    "evaluation": _TABLE7_ATTACK["evaluation"],
}
_TABLE7_WRN32_10: Changes = {
    "model": {"name": "wrn32-10"},
    "attack": _TABLE7_ATTACK["attack"],
    "epsilon": {**_TABLE7_ATTACK["epsilon"], "warmup_epochs": 10},
    "optim": {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "epochs": 110,
        "decay_epochs": (70, 90, 100),
        "decay_factor": 0.2,
        "batch_size": 128,
    },
    "evaluation": _TABLE7_ATTACK["evaluation"],
}


def _table8(depth: int, gpus: int) -> Changes:
    """ImageNet: Table 8, Section 4.2 (targets) and Appendix D.2 (selection, lower bound, precision)."""
    return {
        "data": {"name": "imagenet"},
        "model": {"name": f"imagenet-resnet{depth}"},
        "attack": {
            "eps": 16 / 255,
            "alpha": 1 / 255,
            "steps": 30,
            "targeted": "random",
            "precision": "fp16",
        },
        "epsilon": {
            "warmup_epochs": 30,
            "eps_w": 16 / 255,
            "gamma": 4 / 255,
            "beta": 0.1,
            "eps_min": 4 / 255,
            "selection_steps": 10,
        },
        "optim": {
            "lr": 0.1,
            "lr_reference_batch": 256,
            "lr_warmup_epochs": 5,
            "momentum": 0.9,
            "weight_decay": 0.0001,
            "epochs": 110,
            "decay_epochs": (35, 70, 95),
            "decay_factor": 0.1,
            "batch_size": 32 * gpus,
        },
        # The paper's PGD-1000 takes hours: this is a quick estimate, `python -m iaat_fast.evaluate` measures the rest.
        "evaluation": {
            "eps": 16 / 255,
            "alpha": 1 / 255,
            "steps": 30,
            "restarts": 1,
            "targeted": "random",
        },
    }


# 8 x 8 images of handwritten digits: the classes lie far apart, so the radii are larger than on CIFAR,
# and augmentation (a crop padded by 4, a flip) would turn them into other digits. As in Table 7, the
# radius that is evaluated is also the fixed radius and that of the warm-up, and a step is a quarter of
# it. A radius changes by at most gamma * beta per visit, so the schedule is as long as a minute on two
# cores allows.
_DIGITS: Changes = {
    "data": {"name": "digits", "augment": False},
    "model": {"name": "digits-cnn"},
    "attack": {"eps": 51 / 255, "alpha": 12.75 / 255, "steps": 10},
    "epsilon": {"eps_w": 51 / 255, "gamma": 12.75 / 255, "beta": 0.1, "warmup_epochs": 3},
    # TRADES' authors take 1 on MNIST, at radius 0.3; with 6, MART ended here as a constant prediction at that radius.
    "baseline": {
        "trades_beta": 1.0,
        "mart_beta": 1.0,
        "mma_d_max": 0.5,
        "mma_d_min": 0.1,
        # In the proportions of CAT's paper, whose largest radius is 8/255.
        "cat_eps_max": 51 / 255,
        "cat_eta": 8 / 255,
        "cat_c": 10 * 8 / 51,
    },
    "optim": {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "epochs": 20,
        "decay_epochs": (12, 17),
        "batch_size": 128,
    },
    "evaluation": {"eps": 51 / 255, "alpha": 12.75 / 255, "steps": 10, "restarts": 5},
}

PRESETS: dict[str, Changes] = {
    "digits": _DIGITS,
    "cifar10-resnet18": {"data": {"name": "cifar10"}, **_TABLE7_RESNET18},
    "cifar10-wrn32-10": {"data": {"name": "cifar10"}, **_TABLE7_WRN32_10},
    "cifar100-resnet18": {"data": {"name": "cifar100"}, **_TABLE7_RESNET18},
    "cifar100-wrn32-10": {"data": {"name": "cifar100"}, **_TABLE7_WRN32_10},
    "imagenet-resnet50": _table8(50, gpus=64),
    "imagenet-resnet101": _table8(101, gpus=128),
    "imagenet-resnet152": _table8(152, gpus=128),
}

PROTOCOL_FIELDS: dict[str, Changes] = {
    "paper": {},
    "released": {
        "attack": {"bn": "train_update", "alpha_rule": "scaled", "clamp_start": False},
        "epsilon": {
            "strategy": "sequential",
            "clamp": "candidate",
            "eps_min": 0.0,
            "misclassified": "shrink",
            "misclassified_input": "adversarial",
            "warmup_rule": "correct",
        },
        "optim": {"batch_size": 256, "momentum": 0.9},
    },
}
"""The fields that a protocol sets on top of the preset. The defaults of the dataclasses are those of
`paper`; `released` names every field of the protocol table, also momentum and lower bound, which are
the same in both."""


def preset(
    name: str = "digits",
    *,
    method: Method = IAAT,
    protocol: Protocol = "paper",
    **parts: Mapping[str, Any],
) -> TrainConfig:
    """The configuration of a preset.

    Args:
        name: one of `PRESETS`; the CIFAR ones carry Table 7 of Balaji et al. 2019, the ImageNet
            ones Table 8.
        method: one of `iaat_fast.methods.NAMES`, "iaat" or "adv" for instance.
        protocol: "paper" or "released"; sets the fields of `PROTOCOL_FIELDS`.
        parts: further changes by part, e.g. `optim={"epochs": 3}, run={"seed": 1}`.

    Raises:
        ValueError: an unknown preset, method, protocol or field (the message names the nearest), a
            value out of range, a field among the parts that the method does not read (the message
            says what it reads instead), or "released" for ImageNet, for which the authors have
            released no code.
        TypeError: a value of the wrong type.
    """
    validate.choice("preset", name, PRESETS)
    validate.choice("protocol", protocol, PROTOCOLS)
    if protocol == "released" and name.startswith("imagenet"):
        raise ValueError(
            f"protocol: 'released', expected 'paper' with preset {name}, as the authors released "
            "code for CIFAR-10 only"
        )
    base = override(TrainConfig(preset=name), PRESETS[name])
    base = override(base, {"method": method, "protocol": protocol, **PROTOCOL_FIELDS[protocol]})
    config = override(base, parts)
    given = {f"{part}.{field}": value for part in parts for field, value in parts[part].items()}
    refuse_unread(config, {name: f"{name} is {value!r}" for name, value in given.items()})
    return config
