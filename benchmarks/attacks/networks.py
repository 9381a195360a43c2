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

_CALIBRATION = 64  # images that BatchNorm takes its statistics from


def image_size(name: str) -> int:
    """Height and width of the images that a network is attacked on."""
    return 224 if name == "resnet50" else 32


def make(
    name: str, images: Tensor, *, width: int | None = None, contiguous: bool = False
) -> nn.Module:
    """A network over [0, 1] images, in eval mode on the device of `images`.

    Args:
        name: "resnet18" or "wrn32-10" of `iaat_fast.models`, or "resnet50" of torchvision, all with random weights; or
            a checkpoint of the real data.
        images: float [N, 3, H, W], from which random networks take their statistics.
        width: of "resnet18" and "wrn32-10".
        contiguous: store weights contiguous; else as the network comes, which for those two is channels last.

    Raises:
        FileNotFoundError: a checkpoint without IAAT_FAST_DATA.
    """
    if name in CHECKPOINTS:
        net = checkpoint(name).to(images.device)
    else:
        torch.manual_seed(0)
        built = _resnet50() if name == "resnet50" else models.build(name, width=width)
        net = _calibrated(built.to(images.device), images[:_CALIBRATION])
    return net.to(memory_format=torch.contiguous_format) if contiguous else net  # type: ignore[call-overload]


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

    Without it BatchNorm folds into nothing, and one class takes all images.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.copy_(0.75 + 0.5 * torch.rand(len(norm.weight), generator=generator))
        norm.bias.copy_(0.2 * torch.randn(len(norm.bias), generator=generator))
        norm.momentum = 0.5
    net.train()
    for _ in range(4):
        net(images)
    net.eval()
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    last.bias -= net(images).mean(0)
    return net
