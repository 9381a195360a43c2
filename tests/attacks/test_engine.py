"""Precision, engine and what the network may not do: options, refusals, and which samples leave an attack early."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iaat_fast.attacks import PGD, EngineOptions, options
from iaat_fast.data._torchvision import torchvision


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"precision": "fp8"},
            "precision: 'fp8', expected one of 'fp32', 'tf32', 'bf16', 'fp16', 'auto'",
        ),
        ({"engine": "turbo"}, "engine: 'turbo', expected one of 'auto', 'exact', 'fast'"),
    ],
)
def test_an_unknown_precision_or_engine_is_refused(
    net: nn.Module, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(net, **keywords)


def test_levers_that_need_the_shadow_are_refused_without_it() -> None:
    with pytest.raises(ValueError, match="fold: True without the shadow"):
        EngineOptions(shadow=False)
    with pytest.raises(TypeError, match="compile: 1, expected True or False"):
        EngineOptions(compile=1)  # type: ignore[arg-type]


def test_auto_is_plain_in_fp32_and_fast_below() -> None:
    assert not options.resolve_engine("auto", "fp32").shadow
    assert options.resolve_engine("auto", "tf32") == options.FAST
    assert options.resolve_engine("auto", "bf16") == options.FAST
    assert options.resolve_engine("exact", "bf16") == options.EXACT
    assert not options.EXACT.saturation_proof


def test_automatic_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    for amx, avx512_bf16 in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512_bf16: has)
        expected = "bf16" if amx or avx512_bf16 else "fp32"
        assert options.resolve_precision("auto", cpu) == expected
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 0), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert options.resolve_precision("auto", cuda) == expected
    assert options.resolve_precision("fp32", cuda) == "fp32"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mobilenet_v2", "fp32"),
        ("mobilenet_v3_large", "fp32"),
        ("efficientnet_b0", "fp32"),
        ("shufflenet_v2_x1_0", "fp32"),
        ("resnet18", "bf16"),
        ("resnext50_32x4d", "bf16"),
        ("convnext_tiny", "bf16"),
        ("vit_b_16", "bf16"),
    ],
)
def test_automatic_precision_avoids_depthwise_convolutions_in_bf16_on_a_cpu(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_cpu_multiplies_bf16", lambda: True)
    cpu = torch.device("cpu")
    for classes in (10, 1000):
        with torch.device("meta"):
            model = getattr(torchvision("models"), name)(num_classes=classes)
        assert options.resolve("auto", "auto", cpu, model) == (precision, options.FAST)
        assert options.resolve("bf16", "auto", cpu, model) == ("bf16", options.FAST)
    assert options.resolve("auto", "auto", cpu, lambda x: x) == ("bf16", options.FAST)


def test_nan_weights_are_named_before_the_attack(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        net[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model: the weight '2\.weight' holds NaN"):
        PGD(net)(x, y)


class Drifting(nn.Module):
    """Changes a weight, or its mode, in forward."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.linear = what, nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "weights":
            with torch.no_grad():
                self.linear.weight.mul_(0.99)
        else:
            self.train()
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("what", ["weights", "mode"])
@pytest.mark.parametrize("engine", ["exact", "auto", "fast"])
def test_a_model_that_changes_itself_is_refused(x: Tensor, what: str, engine: str) -> None:
    with pytest.raises(ValueError, match=f"model: its forward changes its (own )?{what}"):
        PGD(Drifting(what), engine=engine)(x, torch.zeros(len(x), dtype=torch.int64))


def test_tf32_is_restored(net: nn.Module, x: Tensor, y: Tensor) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    seen = []

    def model(images: Tensor) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return net(images)

    PGD(model, precision="tf32", steps=1)(x, y)
    assert seen == [(True, True)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def plain_early_stop(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, steps: int) -> Tensor:
    """Any-iterate PGD, sample by sample, without leaving anyone out."""
    eps, alpha = 0.06, 0.01
    x_adv, first = start.clone(), start.clone()
    found = torch.zeros(len(x), dtype=torch.bool)
    for step in range(steps + 1):
        leaf = x_adv.clone().requires_grad_()
        logits = net(leaf)
        new = (logits.argmax(1) != y) & ~found
        first[new], found = x_adv[new], found | new
        if step < steps:
            (grad,) = torch.autograd.grad(
                nn.functional.cross_entropy(logits, y, reduction="sum"), leaf
            )
            moved = x_adv + alpha * grad.sign()
            x_adv = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
    first[~found] = x_adv[~found]
    return first


def test_early_stop_is_the_any_iterate_rule_with_fewer_gradients(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    steps = 20
    start = x.clone()
    expected = plain_early_stop(net, x, y, start, steps)
    pgd = PGD(net, eps=0.06, alpha=0.01, steps=steps, early_stop=True, engine="exact")
    x_adv = pgd(x, y, start=start)
    # A smaller batch may round otherwise, so the verdicts are what must be equal.
    assert torch.equal(net(x_adv).argmax(1) != y, net(expected).argmax(1) != y)
    assert torch.allclose(x_adv, expected, atol=1e-5)
    assert bool((net(x_adv).argmax(1) != y).any())
    assert pgd.stats.planned == len(x) * steps
    assert pgd.stats.gradients < pgd.stats.planned


def test_early_stop_believes_the_live_model_only(
    net: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is fooled by everything must not end the attack."""
    pgd = PGD(net, eps=0.06, alpha=0.01, steps=8, early_stop=True, precision="bf16", seed=0)
    expected = pgd(x, y)
    copy = pgd.network._source
    assert pgd.network.is_shadowed
    forward, input_vjp = copy.forward, copy.input_vjp
    shift = torch.nn.functional.one_hot(torch.tensor(9), 10) * 100.0

    def wrong_vjp(x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        logits, grad = input_vjp(x, lambda logits: cotangent(logits + shift))
        return logits + shift, grad

    monkeypatch.setattr(copy, "forward", lambda x: forward(x) + shift)
    monkeypatch.setattr(copy, "input_vjp", wrong_vjp)
    x_adv = pgd(x, y)
    assert pgd.stats.gradients > 0
    fooled = net(x_adv).argmax(1) != y
    assert bool(((x_adv - x).abs() <= 0.06 + 1e-6).all())
    assert int(fooled.sum()) <= int((net(expected).argmax(1) != y).sum()) + len(x) // 2
    still = ~fooled & (y != 9)
    assert pgd.stats.planned == 8 * len(x)
    assert not bool((net(x)[still].argmax(1) != y[still]).any())


def test_restarts_count_what_they_saved(net: nn.Module, x: Tensor, y: Tensor) -> None:
    pgd = PGD(net, eps=0.1, alpha=0.02, steps=10, restarts=4, seed=0)
    x_adv = pgd(x, y)
    fooled = int((net(x_adv).argmax(1) != y).sum())
    assert fooled > 0
    assert pgd.stats.planned == 4 * 10 * len(x)
    assert pgd.stats.gradients <= pgd.stats.planned
    assert pgd.stats.gradients % 10 == 0
