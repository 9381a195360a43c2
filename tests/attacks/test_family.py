"""What holds for every attack of the family: radii, candidates, splits, dtypes, models, seeds."""

from __future__ import annotations

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
)

RADII = torch.tensor([0.0, 1, 2, 4, 8, 16, 32, 64]) / 255

FAMILY = {
    "FGSM": (FGSM, {}),
    "PGD on C&W": (PGD, {"alpha": 0.005, "steps": 5, "loss": "cw"}),
    "PGD on DLR": (PGD, {"alpha": 0.005, "steps": 5, "loss": "dlr"}),
    "MI-FGSM": (MIFGSM, {"alpha": 0.005, "steps": 5}),
    "NI-FGSM": (NIFGSM, {"alpha": 0.005, "steps": 5}),
    "SI-NI-FGSM": (SINIFGSM, {"alpha": 0.005, "steps": 5, "m": 2}),
    "VMI-FGSM": (VMIFGSM, {"alpha": 0.005, "steps": 5, "N": 2, "early_stop": True}),
    "VNI-FGSM": (VNIFGSM, {"alpha": 0.005, "steps": 5, "N": 1, "restarts": 2}),
    "DI-FGSM": (DIFGSM, {"alpha": 0.02, "steps": 5, "resize_rate": 0.6}),
    "TI-FGSM": (TIFGSM, {"alpha": 0.02, "steps": 5, "len_kernel": 3, "resize_rate": 1.5}),
    "DeepFool": (DeepFool, {"steps": 5}),
    "APGD on CE": (APGD, {"steps": 10}),
    "APGD on DLR": (APGD, {"steps": 10, "loss": "dlr"}),
    "APGD to the end": (APGD, {"steps": 10, "early_stop": False}),
    "APGDT": (APGDT, {"steps": 5, "n_target_classes": 3, "restarts": 2}),
    "FABT": (FABT, {"steps": 5, "n_target_classes": 3, "restarts": 2}),
    "FABT to the end": (FABT, {"steps": 5, "n_target_classes": 2, "early_stop": False}),
    "Square": (Square, {"n_queries": 30, "restarts": 2}),
}
family = pytest.mark.parametrize("name", FAMILY)


def made(name: str, net: Any, **options: Any) -> Any:
    attack, defaults = FAMILY[name]
    return attack(net, **{**defaults, **options})


@family
def test_a_radius_per_sample_is_a_run_per_radius(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    """In float64, because a convolution may round differently in a batch of another size."""
    net, x, y, radii = net.double(), x[::2].double(), y[::2], RADII[::2]
    attack = made(name, net)
    together = attack(x, y, eps=radii, seed=3)
    assert torch.equal(together[0], x[0])
    for i, eps in enumerate(radii.double().tolist()):
        alone = attack(x[i : i + 1], y[i : i + 1], eps=eps, seed=3, index=torch.tensor([i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-8)
    assert torch.equal(made(name, net, eps=radii)(x, y, seed=3), together)


@family
def test_candidates_are_calls(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    """DeepFool and FAB look at more of a gradient than its signs, and a batch of another size rounds it differently."""
    net, x = net.double(), x.double()
    attack = made(name, net)
    eps = torch.stack([RADII + 0.01, RADII])
    together = attack(x, y, eps=eps.flatten(), seed=3)
    assert together.shape == (16, 3, 8, 8)
    for k in range(2):
        single = attack(x, y, eps=eps[k], seed=3, candidate=k)
        tolerance = 1e-12 if name in ("DeepFool", "FABT") else 0
        part = together[8 * k : 8 * k + 8]
        torch.testing.assert_close(part, single, rtol=0, atol=tolerance)


@family
@pytest.mark.parametrize("eps", [8 / 255, 0.5])
def test_the_result_is_in_ball_and_box(
    name: str, eps: float, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    x_adv = made(name, net, eps=eps)(x, y)
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert ((x_adv - x).abs() <= eps + 1e-6).all()
    assert not torch.equal(x_adv, x)


@family
def test_another_box(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    x = 4 * x - 1
    x_adv = made(name, net, eps=1.5, lo=-1.0, hi=3.0)(x, y)
    assert ((x_adv >= -1) & (x_adv <= 3)).all()
    assert ((x_adv - x).abs() <= 1.5 + 1e-6).all()
    assert x_adv.max() > 1


@family
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_and_layout(
    name: str, dtype: torch.dtype, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    net, x = net.to(dtype), x.to(dtype).contiguous(memory_format=torch.channels_last)
    y = net(x).argmax(1)
    x_adv = made(name, net, eps=0.1)(x, y)
    assert x_adv.dtype is dtype
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert (net(x_adv).argmax(1) != y).sum() >= 6


@family
def test_an_empty_batch(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert made(name, net)(x[:0], y[:0]).shape == (0, 3, 8, 8)


@family
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_the_model_is_as_it_was(name: str, bn: str, bn_net: nn.Module, x: Tensor) -> None:
    before = {key: value.clone() for key, value in bn_net.state_dict().items()}
    bn_net.train()
    with torch.no_grad():
        x_adv = made(name, bn_net, bn=bn)(x, torch.arange(8))
    assert not x_adv.requires_grad
    assert all(module.training for module in bn_net.modules())
    assert all(torch.equal(value, before[key]) for key, value in bn_net.state_dict().items())
    assert all(parameter.grad is None for parameter in bn_net.parameters())


@family
def test_the_images_given_are_not_written_to(
    name: str, net: nn.Module, x: Tensor, y: Tensor
) -> None:
    before = x.clone()
    x_adv = made(name, net)(x, y, start=None)
    assert torch.equal(x, before)
    x_adv.zero_()
    assert torch.equal(x, before)


@family
def test_a_seed_decides_all(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    attack = made(name, net)
    assert torch.equal(attack(x, y, seed=1), attack(x, y, seed=1))


@family
def test_the_fast_engine_is_as_strong(name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
    x_adv = made(name, net, eps=0.1, engine="fast")(x, y)
    assert (net(x_adv).argmax(1) != y).sum() >= 6


@family
def test_nan_weights_are_refused(name: str, net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        net[0].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"^model: the weight '0\.bias' holds NaN"):
        made(name, net)(x, y)


@family
@pytest.mark.parametrize("engine", ["exact", "fast"])
@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_nan_running_statistics_are_refused(
    name: str, statistic: str, engine: str, bn_net: nn.Sequential, x: Tensor
) -> None:
    getattr(bn_net[1], statistic)[0] = torch.nan
    with pytest.raises(
        ValueError, match=rf"^model: the buffer '1.{statistic}' holds NaN, expected"
    ):
        made(name, bn_net, engine=engine)(x, torch.arange(8))


@family
@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_are_refused(name: str, classes: int, x: Tensor) -> None:
    """Whatever the labels say: one logit is right about class 0 at any image."""
    model = made(name, lambda images: images.flatten(1)[:, :classes] * 1.0)
    for y in (torch.zeros(8, dtype=torch.int64), torch.arange(8) % 2):
        with pytest.raises(ValueError, match=r"^model: (no|one) logit per image, expected at leas"):
            model(x, y)


@family
def test_what_the_model_returns_is_checked(name: str, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^model: returned \(8, 3, 8, 8\) for 8 images"):
        made(name, lambda images: images)(x, y)
