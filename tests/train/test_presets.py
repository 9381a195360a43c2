"""The presets carry the paper's Tables 7 and 8; a protocol is the table of protocol.md as field values."""

from __future__ import annotations

import pytest

from iaat_fast.train.config import TrainConfig
from iaat_fast.train.presets import PRESETS, preset


def value(config: TrainConfig, name: str) -> object:
    part, _, inner = name.partition(".")
    return getattr(getattr(config, part), inner)


# Table 7, row by row: optimiser, lr, weight decay, epochs, decay steps and factor, batch size,
# warm-up, eps_w, gamma, beta, attack steps, attack eps, attack learning rate.
TABLE_7 = {
    "resnet18": {
        "optim.lr": 0.1,
        "optim.weight_decay": 0.0002,
        "optim.epochs": 200,
        "optim.decay_epochs": (80, 140, 170),
        "optim.decay_factor": 0.1,
        "optim.batch_size": 128,
        "epsilon.warmup_epochs": 5,
        "epsilon.eps_w": 8 / 255,
        "epsilon.gamma": 1.9 / 255,
        "epsilon.beta": 0.1,
        "attack.steps": 10,
        "attack.eps": 8 / 255,
        "attack.alpha": 2 / 255,
    },
    "wrn32-10": {
        "optim.lr": 0.1,
        "optim.weight_decay": 0.0005,
        "optim.epochs": 110,
        "optim.decay_epochs": (70, 90, 100),
        "optim.decay_factor": 0.2,
        "optim.batch_size": 128,
        "epsilon.warmup_epochs": 10,
        "epsilon.eps_w": 8 / 255,
        "epsilon.gamma": 1.9 / 255,
        "epsilon.beta": 0.1,
        "attack.steps": 10,
        "attack.eps": 8 / 255,
        "attack.alpha": 2 / 255,
    },
}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("network", ["resnet18", "wrn32-10"])
def test_cifar_presets_carry_table_7(dataset: str, network: str) -> None:
    config = preset(f"{dataset}-{network}")
    assert {name: value(config, name) for name in TABLE_7[network]} == TABLE_7[network]
    assert config.data.name == dataset
    assert config.data.augment
    assert config.model.name == network
    assert config.optim.momentum == 0.9


# Table 8, row by row, then what Section 4.2 and Appendix D.2 add.
TABLE_8 = {
    "optim.lr": 0.1,
    "optim.lr_reference_batch": 256,
    "optim.weight_decay": 0.0001,
    "optim.epochs": 110,
    "optim.lr_warmup_epochs": 5,
    "optim.decay_epochs": (35, 70, 95),
    "optim.decay_factor": 0.1,
    "epsilon.warmup_epochs": 30,
    "epsilon.eps_w": 16 / 255,
    "epsilon.gamma": 4 / 255,
    "epsilon.beta": 0.1,
    "attack.steps": 30,
    "attack.eps": 16 / 255,
    "attack.alpha": 1 / 255,
    "attack.targeted": "random",
    "attack.precision": "fp16",
    "epsilon.selection_steps": 10,
    "epsilon.eps_min": 4 / 255,
}


@pytest.mark.parametrize(("depth", "gpus"), [(50, 64), (101, 128), (152, 128)])
def test_imagenet_presets_carry_table_8(depth: int, gpus: int) -> None:
    config = preset(f"imagenet-resnet{depth}")
    assert {name: value(config, name) for name in TABLE_8} == TABLE_8
    assert config.optim.batch_size == 32 * gpus
    assert config.data.name == "imagenet"
    assert config.data.augment
    assert config.model.name == f"imagenet-resnet{depth}"
    assert (config.evaluation.alpha, config.evaluation.targeted) == (1 / 255, "random")


def test_the_authors_released_no_code_for_imagenet() -> None:
    with pytest.raises(ValueError, match=r"protocol: 'released', expected 'paper' with preset im"):
        preset("imagenet-resnet50", protocol="released")


@pytest.mark.parametrize("name", ["cifar10-resnet18", "cifar100-wrn32-10"])
def test_cifar_presets_evaluate_as_table_1_does(name: str) -> None:
    evaluation = preset(name).evaluation
    assert (evaluation.eps, evaluation.alpha) == (8 / 255, 2 / 255)
    assert (evaluation.steps, evaluation.restarts) == (10, 5)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_baselines_have_the_weights_of_their_released_code(dataset: str) -> None:
    resnet, wide = (preset(f"{dataset}-{name}").baseline for name in ("resnet18", "wrn32-10"))
    assert (resnet.mart_beta, wide.mart_beta) == (5.0, 6.0)
    for part in (resnet, wide):
        assert (part.trades_beta, part.mixup_alpha) == (6.0, 1.0)
        assert (part.mma_d_max, part.mma_clean_weight) == (32 / 255, 1 / 3)


def test_digits_is_the_default_and_is_evaluated_at_a_fifth_of_the_pixel_range() -> None:
    config = preset()
    assert config.preset == "digits"
    assert config.data.name == "digits"
    assert config.evaluation.eps == 0.2
    assert config.evaluation.restarts == 5
    assert not config.data.augment


@pytest.mark.parametrize("name", PRESETS)
def test_the_radius_evaluated_is_also_the_fixed_one_and_the_warm_ups(name: str) -> None:
    """So a baseline at the fixed radius is the one that the evaluation asks for, as in Tables 7 and 8."""
    config = preset(name)
    assert config.attack.eps == config.epsilon.eps_w == config.evaluation.eps
    assert config.attack.alpha == config.evaluation.alpha


PROTOCOL_TABLE = {
    "attack.bn": ("eval", "train_update"),
    "attack.alpha_rule": ("fixed", "scaled"),
    "attack.clamp_start": (True, False),
    "epsilon.strategy": ("auto", "sequential"),
    "epsilon.clamp": ("result", "candidate"),
    "epsilon.eps_min": (0.0, 0.0),
    "epsilon.misclassified": ("algorithm2", "shrink"),
    "epsilon.misclassified_input": ("clean", "adversarial"),
    "epsilon.warmup_rule": ("visited", "correct"),
    "optim.batch_size": (128, 256),
    "optim.momentum": (0.9, 0.9),
}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("cifar")])
@pytest.mark.parametrize("row", PROTOCOL_TABLE)
def test_each_row_of_the_protocol_table_is_a_field(name: str, row: str) -> None:
    paper, released = PROTOCOL_TABLE[row]
    assert value(preset(name, protocol="paper"), row) == paper
    assert value(preset(name, protocol="released"), row) == released


def test_a_protocol_leaves_the_other_fields_of_the_preset_alone() -> None:
    paper, released = preset("cifar10-wrn32-10"), preset("cifar10-wrn32-10", protocol="released")
    before, after = paper.to_dict(), released.to_dict()
    for part in ("data", "model", "evaluation", "run"):
        assert before[part] == after[part]
    changed = {
        f"{part}.{field}"
        for part in ("attack", "epsilon", "optim")
        for field in before[part]
        if before[part][field] != after[part][field]
    }
    assert changed == {row for row, (a, b) in PROTOCOL_TABLE.items() if a != b}


def test_changes_by_part_override_preset_and_protocol() -> None:
    config = preset("digits", protocol="released", optim={"batch_size": 32}, run={"seed": 4})
    assert config.optim.batch_size == 32
    assert config.run.seed == 4
    assert config.optim.lr == preset("digits").optim.lr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"name": "cifar10-resnet"}, "cifar10-resnet18"),
        ({"method": "iat"}, "iaat"),
        ({"protocol": "release"}, "released"),
        ({"optim": {"epoch": 3}}, "epochs"),
        ({"optimizer": {}}, "optim"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(arguments: dict, hint: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{hint}'"):
        preset(**arguments)
