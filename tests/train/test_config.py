"""A configuration is checked when it is made, and survives config.json unchanged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from iaat_fast import units
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.overrides import FREE, differences, override
from iaat_fast.train.presets import PRESETS, preset

BAD_VALUES: list[tuple[str, str, Any]] = [
    ("attack", "eps", -0.1),
    ("attack", "eps", 8.0),
    ("attack", "eps", float("nan")),
    ("attack", "alpha", 0.0),
    ("attack", "alpha_rule", "fix"),
    ("attack", "steps", 0),
    ("attack", "targeted", "yes"),
    ("attack", "bn", "frozen"),
    ("epsilon", "warmup_epochs", -1),
    ("epsilon", "eps_w", float("inf")),
    ("epsilon", "gamma", -1 / 255),
    ("epsilon", "beta", 1.5),
    ("epsilon", "eps_min", 2.0),
    ("epsilon", "selection_steps", 0),
    ("epsilon", "strategy", "eager"),
    ("epsilon", "final", "approximate"),
    ("epsilon", "clamp", "never"),
    ("epsilon", "misclassified", "ignore"),
    ("epsilon", "misclassified_input", "none"),
    ("epsilon", "warmup_rule", "all"),
    ("optim", "epochs", 0),
    ("optim", "batch_size", 0),
    ("optim", "lr", -0.1),
    ("optim", "lr", float("inf")),
    ("optim", "lr_reference_batch", 0),
    ("optim", "lr_warmup_epochs", 5),
    ("optim", "amp", "fp8"),
    ("optim", "momentum", -0.1),
    ("optim", "weight_decay", -1e-4),
    ("optim", "decay_epochs", (9, 3)),
    ("optim", "decay_epochs", (3, 3)),
    ("optim", "decay_factor", 0.0),
    ("optim", "ema_decay", 1.0),
    ("baseline", "mixup_alpha", 0.0),
    ("baseline", "trades_beta", -6.0),
    ("baseline", "mart_beta", float("inf")),
    ("baseline", "mma_d_max", 32.0),
    ("baseline", "mma_d_min", 0.0),
    ("baseline", "mma_step_scale", 0.0),
    ("baseline", "mma_bisections", 0),
    ("baseline", "mma_clean_weight", 1.1),
    ("data", "name", "cifar11"),
    ("data", "limit", 0),
    ("data", "workers", -1),
    ("data", "on_bad_image", "ignore"),
    ("model", "name", "resnet19"),
    ("model", "width", 0),
    ("evaluation", "eps", -1.0),
    ("evaluation", "restarts", 0),
    ("evaluation", "targeted", "true"),
    ("run", "seed", -1),
    ("run", "checkpoint_steps", -1),
]


def test_a_radius_of_another_scale_names_the_likely_cause() -> None:
    with pytest.raises(ValueError, match=r"^attack\.eps: 2040/255, expected 0 to 255; 8/255\?$"):
        preset("digits", attack={"eps": 8.0})


@pytest.mark.parametrize(("part", "field", "value"), BAD_VALUES)
def test_a_bad_value_is_refused_naming_field_and_value(part: str, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{part}\.{field}: .*, expected ") as caught:
        preset("digits", **{part: {field: value}})
    shown = value if not isinstance(value, float) else units.to_text(value)
    assert str(value) in str(caught.value) or f"{shown}/255" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("optim", "epochs", 2.5), ("attack", "eps", "8"), ("data", "limit", True)],
)
def test_a_value_of_the_wrong_type_is_a_type_error(part: str, field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{part}.{field}"):
        preset("digits", **{part: {field: value}})


@pytest.mark.parametrize(
    ("name", "protocol"),
    [(name, "paper") for name in PRESETS]
    + [("digits", "released"), ("cifar10-wrn32-10", "released")],
)
def test_a_configuration_survives_json(name: str, protocol: Any) -> None:
    config = preset(name, protocol=protocol)
    assert override(TrainConfig(), json.loads(json.dumps(config.to_dict()))) == config


def test_numbers_of_numpy_are_recorded_as_plain_numbers() -> None:
    optim = {"epochs": np.int64(3), "lr": np.float32(0.5), "decay_epochs": (np.int64(2),)}
    config = override(TrainConfig(), {"optim": optim}).optim
    assert (config.epochs, config.lr, config.decay_epochs) == (3, 0.5, (2,))
    assert [type(n) for n in (config.epochs, config.lr, *config.decay_epochs)] == [int, float, int]


def test_selection_with_fewer_steps_cannot_lend_its_images_to_training() -> None:
    with pytest.raises(ValueError, match=r"epsilon\.final: 'reuse'.*selection_steps 10"):
        preset("digits", epsilon={"selection_steps": 10, "final": "reuse"})


@pytest.mark.parametrize("bn", ["train", "train_update"])
@pytest.mark.parametrize("strategy", ["lazy", "batched"])
def test_batch_statistics_need_the_sequential_strategy(bn: str, strategy: str) -> None:
    parts = {"attack": {"bn": bn}, "epsilon": {"strategy": strategy}}
    with pytest.raises(ValueError, match=r"epsilon\.strategy: .*'sequential'"):
        preset("digits", **parts)
    assert override(preset("digits", method="adv"), parts).attack.bn == bn


def test_the_smallest_radius_of_mma_lies_below_its_largest() -> None:
    part = {"mma_d_max": 8 / 255, "mma_d_min": 9 / 255}
    with pytest.raises(ValueError, match=r"mma_d_min: 9/255, expected at most .*d_max, 8/255"):
        preset("cifar10-resnet18", method="mma", baseline=part)
    assert override(preset("cifar10-resnet18"), {"baseline": part}).baseline.mma_d_max == 8 / 255


def test_differences_name_the_fields_and_both_values() -> None:
    old = preset("digits", optim={"epochs": 30})
    new = preset("digits", method="adv", optim={"epochs": 3})
    found = differences(old, new)
    assert len(found) == 2
    assert "'iaat'" in found[0]
    assert "'adv'" in found[0]
    assert "optim.epochs" in found[1]
    assert "(30 there, 3 given)" in found[1]


def test_only_fields_outside_the_arithmetic_may_differ() -> None:
    old = preset("cifar10-resnet18")
    for name in FREE:
        part, _, field = name.partition(".")
        other = {
            "str": "elsewhere",
            "int": 77,
            "float": 7.5,
            "bool": False,
            "NoneType": "elsewhere",
        }
        value = other[type(getattr(getattr(old, part), field)).__name__]
        value = {"workers": 7, "on_bad_image": "skip"}.get(field, value)
        new = preset("cifar10-resnet18", **{part: {field: value}})
        assert new != old
        assert differences(old, new) == []
