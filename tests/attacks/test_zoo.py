"""Networks of torchvision, timm and transformers, with random weights, are attacked as they are, in fp32 and bf16."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iaat_fast.attacks import PGD
from iaat_fast.attacks.inputs import logits_in
from iaat_fast.data._torchvision import torchvision
from iaat_fast.models import STATISTICS, normalized

# Of a deep network of random weights many are.
DEAD_UNITS = pytest.mark.filterwarnings("ignore:more than half of the gradient:RuntimeWarning")
EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 3
CLASSES = 5


def of_torchvision(name: str) -> nn.Module:
    models = torchvision("models")
    if name == "resnet":
        return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    if name == "convnext":
        settings = [models.convnext.CNBlockConfig(*widths, 1) for widths in ((8, 16), (16, None))]
        return models.ConvNeXt(settings, num_classes=CLASSES)
    vit = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=CLASSES)
    nn.init.normal_(vit.heads.head.weight)  # which starts at 0, without a gradient
    return vit


def of_timm(name: str, **options: Any) -> nn.Module:
    torchvision(
        "models"
    )  # first: it gets timm's import through where torchvision's compiled ops do not load
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=CLASSES, **options)


def of_transformers(name: str, **options: Any) -> nn.Module:
    torchvision("models")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
    return getattr(transformers, f"{name}ForImageClassification")(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision ResNet": partial(of_torchvision, "resnet"),
    "torchvision ConvNeXt": partial(of_torchvision, "convnext"),
    "torchvision ViT": partial(of_torchvision, "vit"),
    "timm resnet18": partial(of_timm, "resnet18"),
    "timm convnext": partial(of_timm, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)),
    "timm vit": partial(of_timm, "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2),
    "timm efficientnet": partial(of_timm, "efficientnet_lite0"),
    "transformers ResNet": partial(
        of_transformers,
        "ResNet",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    ),
    "transformers ViT": partial(
        of_transformers,
        "ViT",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    ),
    "transformers ConvNeXt": partial(
        of_transformers, "ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2
    ),
    "transformers Swin": partial(
        of_transformers,
        "Swin",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    ),
}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return normalized(NETWORKS[name]().eval(), *STATISTICS["imagenet"])


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


Y = torch.arange(8) % CLASSES


@torch.no_grad()
def losses(network: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(logits_in(network(x)), Y, reduction="none")


@DEAD_UNITS
@pytest.mark.parametrize("name", NETWORKS)
def test_the_live_network_is_attacked_as_by_a_plain_loop(name: str, x: Tensor) -> None:
    network = made(name)
    found = PGD(network, EPS, ALPHA, STEPS, random_start=False, engine="exact")(x, Y)
    expected = x
    for _ in range(STEPS):
        leaf = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(logits_in(network(leaf)), Y), leaf)
        delta = (expected + ALPHA * grad.sign() - x).clamp(-EPS, EPS)
        expected = (x + delta).clamp(0, 1)
    assert torch.equal(found, expected)


@pytest.mark.slow
@DEAD_UNITS
@pytest.mark.parametrize(("precision", "engine"), [("fp32", "fast"), ("bf16", "auto")])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_is_made_and_finds_what_the_live_network_does(
    name: str, precision: str, engine: str, x: Tensor
) -> None:
    """Up to rounding, which turns signs: in bf16 of up to a third of the gradients' entries in deep networks."""
    network = made(name)
    exact = PGD(network, EPS, ALPHA, STEPS, seed=0, engine="exact")(x, Y)
    attack = PGD(network, EPS, ALPHA, STEPS, seed=0, precision=precision, engine=engine)
    rise = losses(network, attack(x, Y)) - losses(network, x)
    best = losses(network, exact) - losses(network, x)
    assert "a copy in" in attack.network.gradient_source
    assert best.sum() > 0
    assert rise.sum() > (0.99 if precision == "fp32" else 0.5) * best.sum()
