"""Bad input to an attack is refused with an error that names the argument, its value and what was expected."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import (
    APGD,
    APGDT,
    DIFGSM,
    FABT,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SINIFGSM,
    TIFGSM,
    VMIFGSM,
    VNIFGSM,
    DeepFool,
    Square,
    scaled_step,
)
from iaat_fast.attacks.attack import Attack


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, r"^eps: -0\.1, expected a number >= 0"),
        ({"eps": math.nan}, ValueError, r"^eps: nan, expected a number >= 0"),
        ({"eps": "8/255"}, TypeError, r"^eps: '8/255', expected a float or a Tensor"),
        ({"eps": True}, TypeError, r"^eps: True, expected a float or a Tensor"),
        ({"eps": 8}, ValueError, r"^eps: 8, expected at most 1, the width of \[0, 1\]; 8/255\?"),
        ({"eps": math.inf}, ValueError, r"^eps: inf, expected at most 1, the width of \[0, 1\]$"),
        ({"lo": -2.0, "hi": 2.0, "eps": 4.01}, ValueError, r"^eps: 4\.01, expected at most 4, the"),
        (
            {"alpha": 2},
            ValueError,
            r"^alpha: 2, expected at most 1, the width of \[0, 1\]; 2/255\?",
        ),
        ({"alpha": 0.0}, ValueError, r"^alpha: 0\.0, expected a number > 0"),
        ({"alpha": -0.1}, ValueError, r"^alpha: -0\.1, expected a number > 0"),
        ({"alpha": math.nan}, ValueError, r"^alpha: nan, expected a number > 0"),
        ({"steps": -1}, ValueError, r"^steps: -1, expected at least 0"),
        ({"steps": 2.0}, TypeError, r"^steps: 2\.0, expected an int"),
        ({"restarts": 0}, ValueError, r"^restarts: 0, expected at least 1"),
        ({"restarts": 2, "random_start": False}, ValueError, r"^restarts: 2 without random_start"),
        (
            {"targeted": "least likely"},
            ValueError,
            r"^targeted: 'least likely', expected one of False, True, 'random'",
        ),
        ({"targeted": 1}, ValueError, r"^targeted: 1, expected one of"),
        (
            {"bn": "batch"},
            ValueError,
            r"^bn: 'batch', expected one of 'eval', 'train', 'train_update'",
        ),
        ({"precision": "fp8"}, ValueError, r"^precision: 'fp8', expected one of 'fp32'"),
        ({"engine": "turbo"}, ValueError, r"^engine: 'turbo', expected one of 'auto', 'exact'"),
        ({"lo": 1.0, "hi": 0.0}, ValueError, r"^lo, hi: 1\.0, 0\.0, expected lo <= hi"),
        ({"seed": 0.5}, TypeError, r"^seed: 0\.5, expected an int"),
        ({"seed": 2**63}, ValueError, r"^seed: 9223372036854775808, expected a number in"),
    ],
)
def test_the_constructor(
    net: nn.Module, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PGD(net, **options)


def test_a_model_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match=r"^model: dict, expected a callable"):
        PGD({})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attack", "given", "message"),
    [
        (PGD, "step", r"^PGD: unknown argument 'step', did you mean 'steps'\?$"),
        (
            FGSM,
            "random-start",
            r"^FGSM: unknown argument 'random-start', did you mean 'random_start'",
        ),
        (APGD, "clip", r"^APGD: unknown argument 'clip', expected one of model, eps, steps, loss"),
        (DeepFool, "seed", r"^DeepFool: unknown argument 'seed', expected one of model, eps"),
    ],
)
def test_a_keyword_that_an_attack_does_not_take(
    attack: type[Attack], given: str, message: str, net: nn.Module
) -> None:
    with pytest.raises(TypeError, match=message):
        attack(net, **{given: 1})


def test_a_subclass_hands_keywords_on_without_naming_them(net: nn.Module) -> None:
    class Short(PGD):
        def __init__(self, model: nn.Module, **options: Any) -> None:
            super().__init__(model, steps=2, **options)

    assert Short(net, early_stop=True).early_stop
    assert list(inspect.signature(Short).parameters) == ["model", "options"]
    with pytest.raises(TypeError, match="earlystop"):
        Short(net, earlystop=True)


def test_fgsm_has_one_step_of_its_own(net: nn.Module) -> None:
    with pytest.raises(TypeError, match="alpha"):
        FGSM(net, alpha=0.1)
    with pytest.raises(ValueError, match=r"^eps: -1, expected a number >= 0"):
        FGSM(net, -1)


def test_scaled_step() -> None:
    with pytest.raises(ValueError, match=r"^steps: 0, expected at least 1"):
        scaled_step(0)
    with pytest.raises(ValueError, match=r"^floor: 0\.0, expected a number > 0"):
        scaled_step(10, 0.0)


def spoiled(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[5] = value
    return tensor


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"x": lambda x: spoiled(x, 1.01)},
            ValueError,
            r"^x: values from .* to 1\.01, expected images in \[0, 1\]",
        ),
        (
            {"x": lambda x: spoiled(x, -0.01)},
            ValueError,
            r"^x: values from -0\.01 to .*, expected images in",
        ),
        ({"x": lambda x: spoiled(x, math.nan)}, ValueError, r"^x: values from nan"),
        ({"x": lambda x: spoiled(x, math.inf)}, ValueError, r"^x: values from .* to inf"),
        ({"x": lambda x: 255 * x}, ValueError, r"^x: values .*normalisation belongs in the model"),
        (
            {"x": lambda x: (255 * x).byte()},
            TypeError,
            r"^x: dtype torch.uint8, .*divide integer images by 255",
        ),
        ({"x": lambda x: x.numpy()}, TypeError, r"^x: ndarray, expected a torch\.Tensor"),
        ({"y": lambda y: y.float()}, TypeError, r"^y: dtype torch.float32, expected int64"),
        ({"y": lambda y: y.int()}, TypeError, r"^y: dtype torch.int32, expected int64"),
        ({"y": lambda y: y[:7]}, ValueError, r"^y: shape \(7,\), expected \[8\]"),
        ({"y": lambda y: y.view(8, 1)}, ValueError, r"^y: shape \(8, 1\), expected \[8\]"),
        ({"y": lambda y: y * 0 + 10}, ValueError, r"^y: 10, expected a class in 0 \.\.\. 9"),
        ({"y": lambda y: y * 0 - 1}, ValueError, r"^y: -1, expected a class >= 0"),
        ({"eps": -0.1}, ValueError, r"^eps: -0\.1, expected a number >= 0"),
        ({"eps": math.nan}, ValueError, r"^eps: nan, expected a number >= 0"),
        (
            {"eps": 8.0},
            ValueError,
            r"^eps: 8\.0, expected at most 1, the width of \[0, 1\]; 8/255\?",
        ),
        (
            {"eps": spoiled(torch.zeros(8), 8)},
            ValueError,
            r"^eps: 8\.0 at index 5, expected at most 1, the width of \[0, 1\]; 8/255\?",
        ),
        (
            {"alpha": 2.0},
            ValueError,
            r"^alpha: 2\.0, expected at most 1, the width of \[0, 1\]; 2/25",
        ),
        (
            {"eps": torch.full((8,), -0.1)},
            ValueError,
            r"^eps: -0\.1.* at index 0, expected a number >= 0",
        ),
        ({"eps": spoiled(torch.zeros(8), math.nan)}, ValueError, r"^eps: nan at index 5, expected"),
        (
            {"eps": torch.zeros(7)},
            ValueError,
            r"^eps: length 7, expected a multiple of the 8 samples",
        ),
        (
            {"eps": torch.zeros(0)},
            ValueError,
            r"^eps: length 0, expected a multiple of the 8 samples",
        ),
        ({"eps": torch.zeros(8, 1, 1, 1)}, ValueError, r"^eps: shape \(8, 1, 1, 1\), expected"),
        (
            {"eps": torch.zeros(8, device="meta")},
            ValueError,
            r"^eps: device meta, expected that of the images",
        ),
        (
            {"eps": torch.zeros(8, dtype=torch.int64)},
            TypeError,
            r"^eps: dtype torch.int64, expected",
        ),
        ({"alpha": 0.0}, ValueError, r"^alpha: 0\.0 at index 0, expected a number > 0"),
        ({"alpha": torch.zeros(8)}, ValueError, r"^alpha: 0\.0 at index 0, expected a number > 0"),
        (
            {"alpha": spoiled(torch.ones(8), math.nan)},
            ValueError,
            r"^alpha: nan at index 5, expected",
        ),
        ({"alpha": torch.ones(3)}, ValueError, r"^alpha: shape \(3,\), expected .*\[8\]"),
        ({"alpha": lambda eps: eps[:2]}, ValueError, r"^alpha: shape \(2,\), expected .*\[8\]"),
        (
            {"start": torch.zeros(8, 3, 8, 9)},
            ValueError,
            r"^start: shape \(8, 3, 8, 9\), expected that of x",
        ),
        (
            {"start": torch.zeros(16, 3, 8, 8)},
            ValueError,
            r"^start: shape \(16, 3, 8, 8\), expected that of x",
        ),
        (
            {"start": torch.zeros(8, 3, 8, 8).double()},
            TypeError,
            r"^start: dtype torch.float64, expected that of x",
        ),
        ({"index": torch.arange(7)}, ValueError, r"^index: shape \(7,\), expected \[8\]"),
        ({"index": torch.arange(8.0)}, TypeError, r"^index: dtype torch.float32, expected int64"),
        ({"seed": 1.5}, TypeError, r"^seed: 1\.5, expected an int"),
        ({"candidate": 1.5}, TypeError, r"^candidate: 1\.5, expected an int"),
    ],
)
def test_the_call(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = {name: t.clone() for name, t in net.state_dict().items()}
    options = dict(changes)
    images = options.pop("x", lambda x: x)(x)
    labels = options.pop("y", lambda y: y)(y)
    pgd = PGD(net.train(), steps=2)
    with pytest.raises(error, match=message):
        pgd(images, labels, **options)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize(
    "attack",
    [
        *(PGD, FGSM, MIFGSM, NIFGSM, SINIFGSM, VMIFGSM, VNIFGSM, DIFGSM, TIFGSM),
        *(APGD, APGDT, DeepFool, FABT, Square),
    ],
    ids=lambda cls: cls.__name__,
)
def test_every_attack_refuses_a_radius_of_another_scale(
    attack: Any, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    with pytest.raises(
        ValueError, match=r"^eps: 8, expected at most 1, the width of \[0, 1\]; 8/255"
    ):
        attack(net, 8)
    with pytest.raises(
        ValueError, match=r"^eps: 8\.0 at index 0, expected at most 1, the width of"
    ):
        attack(net, torch.full((8,), 8.0))(x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_radius_as_wide_as_the_box_is_accepted(
    dtype: torch.dtype, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """0.1 and 0.3 are rounded up by some of the types."""
    for width in (0.1, 0.3, 1.0):
        pgd = PGD(net, eps=width, alpha=0.05, steps=1, hi=width)
        pgd(width * x, y, eps=torch.full((8,), width, dtype=dtype))


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (PGD, {"steps": 0}),
        (MIFGSM, {"steps": 0}),
        (APGD, {"steps": 0}),
        (FABT, {"steps": 0}),
        (DeepFool, {"steps": 0}),
        (Square, {"n_queries": 0}),
    ],
)
def test_no_steps_are_said(attack: Any, options: dict[str, int], net: nn.Module) -> None:
    with pytest.warns(RuntimeWarning, match=rf"^{attack.__name__} of 0 steps takes no gradient"):
        attack(net, **options)


def test_float_noise_outside_the_box_is_accepted(net: nn.Module, x: Tensor, y: Tensor) -> None:
    noisy = spoiled(spoiled(x, -3e-8), 1 + 1e-6)
    noisy.view(-1)[6] = -3e-8
    x_adv = PGD(net, steps=2)(noisy, y)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    half = spoiled(x, 1.0).half() * 1.001
    PGD(net.half(), steps=1)(half.clamp(0, 1.001), y)


def test_a_start_and_restarts_exclude_each_other(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^start: given, but 2 restarts"):
        PGD(net, restarts=2)(x, y, start=x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x, r"^model: returned \(8, 3, 8, 8\) for 8 images, expected \[8, C\]"),
        (lambda x: x.flatten(1)[:4], r"^model: returned \(4, 192\) for 8 images"),
        (lambda x: (x.flatten(1), x), r"^model: returned tuple for 8 images"),
        (lambda x: x.flatten(1).detach(), r"^model: its output has no gradient"),
        (
            lambda x: x.detach().flatten(1) * nn.Parameter(torch.ones(192)),
            r"^model: its output has no gradient",
        ),
        (lambda x: x.flatten(1) * math.nan, r"^logits: \[nan, .* in row 0, expected numbers"),
    ],
    ids=["images", "too few rows", "tuple", "detached", "detached input", "nan"],
)
def test_a_model_that_returns_something_else(
    model: Any, message: str, x: Tensor, y: Tensor
) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(model, steps=2)(x, y)


def test_a_failed_call_leaves_the_attack_usable(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, steps=2, seed=0)
    expected = pgd(x, y)
    with pytest.raises(ValueError, match=r"^y: 10"):
        pgd(x, y * 0 + 10)
    assert torch.equal(pgd(x, y), expected)
