"""Networks to attack: random ones that tell images apart, and real checkpoints."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import torch
from torch import Tensor, nn

from iaat_fast import models
from iaat_fast.data._torchvision import datasets

CHECKPOINTS = ("resnet4b", "resnet2b", "resnet20")
RANDOM = ("resnet18", "wrn32-10", "resnet50")
NAMES = (*RANDOM, *CHECKPOINTS)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_BRANCH = 0.2  # size of what a residual block adds; the usual initial value of its last BatchNorm is 0 or 1
_DIRECTIONS = 8  # in which the features of the images differ most; the last layer mixes them


def image_size(name: str) -> int:
    """Height and width of the images that a network is attacked on."""
    return 224 if name == "resnet50" else 32


def make(name: str, images: Tensor, *, width: int | None = None) -> nn.Module:
    """A network over [0, 1] images, in eval mode on the device of `images`.

    Args:
        name: "resnet18" or "wrn32-10" of `iaat_fast.models`, or "resnet50" of torchvision, all with random weights; or
            a checkpoint of the real data.
        images: float [N, 3, H, W], N at least 16, from which random networks take their statistics.
        width: of "resnet18" and "wrn32-10".

    Raises:
        FileNotFoundError: a checkpoint without IAAT_FAST_DATA.
    """
    if name in CHECKPOINTS:
        net = checkpoint(name).to(images.device)
    else:
        torch.manual_seed(0)
        built = _resnet50() if name == "resnet50" else models.build(name, width=width)
        net = _calibrated(built.to(images.device), images)
    return net


def checkpoint(name: str) -> nn.Module:
    """A trained network by its name, from the folder of real data that IAAT_FAST_DATA names."""
    folder = os.environ.get("IAAT_FAST_DATA")
    if not folder:
        raise FileNotFoundError(f"{name}: IAAT_FAST_DATA names no folder with checkpoints")
    net: nn.Module = runpy.run_path(str(Path(folder) / "nets.py"))["load"](name)
    return net.eval()


def _resnet50() -> nn.Module:
    datasets()  # lets torchvision be imported also where its compiled ops do not load
    from torchvision.models import resnet50

    return nn.Sequential(models.Normalize(*IMAGENET), resnet50(weights=None))


@torch.no_grad()
def _calibrated(net: nn.Module, images: Tensor) -> nn.Module:
    """Give a random network what makes a trained one: BatchNorm that is not the identity, and classes that all occur.

    As it comes, BatchNorm folds into nothing, one class takes all images, and rounding grows from block to block until
    half of the signs of a ResNet-50's gradient flip in bfloat16. So BatchNorm takes the statistics of the images,
    blocks add little to what passes by them, and the last layer looks where the images' features differ most.
    """
    generator = torch.Generator().manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.copy_(0.75 + 0.5 * torch.rand(len(norm.weight), generator=generator))
            norm.bias.copy_(0.2 * torch.randn(len(norm.bias), generator=generator))
            norm.momentum = 1.0  # the statistics of the next batch
    for block in net.modules():
        norms = [child for child in block.children() if isinstance(child, nn.BatchNorm2d)]
        if len(norms) > 1:
            norms[-1].weight *= _BRANCH
            norms[-1].bias *= _BRANCH
    net.train()
    net(images)
    net.eval()
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    features = _inputs(last, net, images)
    mean = features.mean(0)
    _, sizes, directions = torch.linalg.svd(features - mean, full_matrices=False)
    most = min(_DIRECTIONS, len(features) - 1)
    mix = torch.randn(last.out_features, most, generator=generator).to(images.device)
    # Along each direction the images' coordinates get variance 1, so that no class is sure of itself.
    scale = (len(features) / most) ** 0.5 / sizes[:most]
    last.weight.copy_((mix * scale) @ directions[:most])
    last.bias.copy_(-(last.weight @ mean))
    return net


def _inputs(layer: nn.Module, net: nn.Module, images: Tensor) -> Tensor:
    """What reaches a layer, [N, features]."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(images)
    hook.remove()
    return seen[0]
