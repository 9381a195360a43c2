"""The copy of the modules gives what the live model gives and follows its weights; attacks use it where they may."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast import models
from iaat_fast.attacks import PGD, EngineOptions
from iaat_fast.attacks.gradients.shadow import Shadow, Unshadowable
from tests.attacks.networks import with_statistics

EXACT_COPY = EngineOptions(fold=False, channels_last=False, saturation_proof=False)


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(3)
    return with_statistics(models.build("resnet18", width=4))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def shadow_of(model: nn.Module, *, dtype: torch.dtype | None = None) -> Shadow:
    shadow = Shadow(model, dtype=dtype, channels_last=True)
    shadow.refresh()
    return shadow


def test_it_follows_the_live_weights_and_holds_none_of_them(
    resnet: nn.Module, images: Tensor
) -> None:
    shadow = shadow_of(resnet)
    addresses = {p.data_ptr() for p in resnet.parameters()}
    assert not addresses & {p.data_ptr() for p in shadow.module.parameters()}
    assert not any(p.requires_grad for p in shadow.module.parameters())
    with torch.no_grad():
        for tensor in (*resnet.parameters(), *resnet.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(0.9)
        assert not torch.allclose(shadow.module(images), resnet(images), rtol=1e-4)
        shadow.refresh()
        assert torch.allclose(shadow.module(images), resnet(images), rtol=1e-3, atol=1e-4)


def test_tied_weights_stay_tied() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), first)
    shadow = shadow_of(model)
    x = torch.rand(3, 6)
    assert torch.equal(shadow.module(x), model(x))
    assert len({p.data_ptr() for p in shadow.module.parameters()}) == 3


def test_batchnorm_keeps_its_precision(resnet: nn.Module) -> None:
    found = {p.dtype for p in shadow_of(resnet, dtype=torch.bfloat16).module.parameters()}
    norm = shadow_of(resnet, dtype=torch.bfloat16).module.get_submodule("bn1")
    assert found == {torch.bfloat16, torch.float32}
    assert {t.dtype for t in norm.state_dict().values()} == {torch.float32, torch.int64}


def test_hooks_belong_to_the_live_model(resnet: nn.Module) -> None:
    resnet.linear.register_forward_hook(lambda *args: None)
    with pytest.raises(Unshadowable, match="linear has hooks"):
        shadow_of(resnet)


class Branching(nn.Module):
    """Its control flow looks at values, so that it cannot be traced."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.conv(x)
        if out.sum() > 0:
            out = F.relu(out)
        return out.mean((2, 3))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) + torch.randn(len(x), 4)


class MixedTypes(nn.Module):
    """Insists on float32, so that a copy of the modules in bf16 mixes dtypes and fails; a program does not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float() @ self.linear.weight.t()


def small() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model[1].register_forward_hook(lambda module, inputs, output: None)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "precision", "expected", "reason"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "bf16", "a copy in", None),
        (lambda: Branching(nn.Conv2d(3, 4, 3)), "bf16", "not folded", "cannot be exported"),
        (Noisy, "bf16", "autocast", "off by"),
        (Noisy, "fp32", "the live model", "off by"),
        (MixedTypes, "bf16", "a copy in", None),
        (hooked, "fp16", "autocast", "has hooks"),
    ],
    ids=["plain", "branching", "noisy bf16", "noisy fp32", "mixed types", "hooked"],
)
def test_a_model_that_cannot_be_shadowed_is_attacked_all_the_same_and_it_is_said_once(
    make: Callable[[], nn.Module],
    precision: str,
    expected: str,
    reason: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    x, y = small(), torch.tensor([0, 1, 2, 3])
    pgd = PGD(make(), steps=3, precision=precision, engine="fast", seed=0)
    with caplog.at_level(logging.INFO, "iaat_fast"):
        first = pgd(x, y)
        pgd(x, y)
    assert expected in pgd.network.gradient_source
    assert len(caplog.records) == 1
    if reason is not None:
        assert reason in caplog.text
    assert (first - x).abs().max() <= 8 / 255 + 1e-6
    assert not torch.equal(first, x)


def test_batch_statistics_that_are_to_be_updated_are_the_live_models(
    bn_net: nn.Module, x: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    before = bn_net[1].running_mean.clone()
    pgd = PGD(bn_net, steps=2, bn="train_update", precision="bf16", seed=0)
    pgd(x, torch.zeros(len(x), dtype=torch.int64))
    assert "running statistics" in caplog.text
    assert not torch.equal(bn_net[1].running_mean, before)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_a_copy_that_changes_nothing_gives_the_bits_of_the_plain_loop(
    bn_net: nn.Module, x: Tensor, bn: str
) -> None:
    y = bn_net.eval()(x).argmax(1)
    before = {name: value.clone() for name, value in bn_net.state_dict().items()}
    exact = PGD(bn_net, steps=5, bn=bn, engine="exact", seed=0)(x, y)
    copied = PGD(bn_net, steps=5, bn=bn, engine=EXACT_COPY, seed=0)(x, y)
    assert torch.equal(exact, copied)
    assert all(torch.equal(value, before[name]) for name, value in bn_net.state_dict().items())


def test_the_fast_engine_sees_new_weights_and_new_layers(bn_net: nn.Module, x: Tensor) -> None:
    y = bn_net.eval()(x).argmax(1)
    pgd = PGD(bn_net, steps=2, engine="fast", seed=0)
    pgd(x, y)
    made = pgd.network._source
    with torch.no_grad():
        bn_net[5].weight.neg_()
    changed = pgd(x, y)
    assert pgd.network._source is made
    assert torch.equal(changed, PGD(bn_net, steps=2, engine="fast", seed=0)(x, y))
    bn_net[5] = nn.Linear(bn_net[5].in_features, 10)
    replaced = pgd(x, y)
    assert pgd.network._source is not made
    assert torch.equal(replaced, PGD(bn_net, steps=2, engine="fast", seed=0)(x, y))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "auto"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 12)])
def test_every_precision_attacks_in_the_images_dtype_and_layout(
    precision: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 5))
    y = model(x).argmax(1)
    x_adv = PGD(model, eps=0.5, alpha=0.1, precision=precision, seed=0)(x, y)
    assert x_adv.dtype is x.dtype
    assert x_adv.stride() == x.stride()
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.7


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_the_images_come_back_in_their_layout(
    bn_net: nn.Module, x: Tensor, engine: str, layout: torch.memory_format
) -> None:
    placed = x.contiguous(memory_format=layout)
    y = bn_net.eval()(x).argmax(1)
    pgd = PGD(bn_net, steps=2, engine=engine, seed=0)
    assert pgd(placed, y).stride() == placed.stride()
    # The noise follows the pixels, not their place in memory.
    start = PGD(bn_net, steps=0, seed=0)(x, y)
    assert torch.equal(PGD(bn_net, steps=0, engine=engine, seed=0)(placed, y), start)
