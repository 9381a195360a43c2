"""The targets of attacks: images, networks that classify them, and the networks' own predictions."""

from __future__ import annotations

import dataclasses
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from iaat_fast import data, models
from iaat_fast.data import Split
from iaat_fast.data._torchvision import datasets

CHECKPOINTS = (
    *("resnet4b", "resnet2b", "resnet20"),
    *("resnet18-adv-8epochs", "resnet18-iaat-8epochs"),
)
RANDOM = ("resnet18", "wrn32-10", "resnet50")
SMALL = "small"  # for rehearsals: "resnet18" of 10 layers and width 4
NAMES = (*RANDOM, *CHECKPOINTS, SMALL)
_BRANCH = 0.2  # scale of a block's last BatchNorm, whose usual initial value is 0 or 1
_DIRECTIONS = 8  # directions in which the images' features differ most, which the last layer mixes


@dataclasses.dataclass(frozen=True)
class Target:
    """A network in eval mode, images [N, C, H, W] in [0, 1], and its own predictions on them, int64 [N]."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """The description of a target, in plain values for JSON.

    width: of "resnet18" and "wrn32-10"; None: their own.
    data: an .npz of images; None: the default of `load_images`.
    """

    model: str
    batch: int
    device: str
    width: int | None = None
    data: str | None = None

    def build(self) -> tuple[Target, str]:
        """The target, and a description of its images."""
        pixels, source = image_size(self.model), Path(self.data) if self.data else None
        x, _, described = load_images(self.batch, pixels, source)
        calibration, _, _ = load_images(64 if pixels == 32 else 16, pixels, source)
        net = build_network(self.model, calibration.to(self.device), width=self.width)
        x = x.to(self.device)
        with torch.no_grad():
            logits = torch.cat([net(part) for part in x.split(64)])
        # The network's own predictions as classes, so that no sample is misclassified before the attack.
        return Target(net, x, logits.argmax(1), logits.shape[1]), described

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_images(n: int, size: int, source: Path | None = None) -> tuple[Tensor, Tensor | None, str]:
    """n images, their classes and a description.

    Args:
        n: number of images; they are repeated if there are fewer.
        size: height and width; CIFAR's 32 x 32 are enlarged bilinearly.
        source: an .npz file of images; None: the folder of real data that IAAT_FAST_DATA names, else random images.

    Returns:
        float32 [n, 3, size, size] in [0, 1]; their classes, int64 [n], None for random ones; and a description.

    Raises:
        FileNotFoundError, ValueError: `source` is not there, or not such a file.
    """
    folder = os.environ.get("IAAT_FAST_DATA")
    if source is not None:
        split = data.load("cifar10", source).test
        assert isinstance(split, Split)
        pixels, labels, name = split.images.numpy(), split.labels.numpy(), source.name
    elif folder:
        read_pack = runpy.run_path(str(Path(folder) / "unpack.py"))["read_pack"]
        pixels, labels = read_pack(Path(folder) / "cifar10-test.npz")
        name = "CIFAR-10 test"
    else:
        return smooth_noise(n, size), None, f"random, smooth, {size}x{size}"
    first = np.arange(n) % len(pixels)
    images = torch.from_numpy(pixels[first]).permute(0, 3, 1, 2).float().div(255).contiguous()
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bilinear").clamp(0, 1)
        name = f"{name}, enlarged to {size}x{size}"
    return images, torch.from_numpy(labels[first]), name


def smooth_noise(n: int, size: int) -> Tensor:
    """float32 [n, 3, size, size] in [0, 1]: blobs and some noise; neighbouring pixels are close, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    blobs = F.interpolate(
        torch.rand(n, 3, 6, 6, generator=generator), size=(size, size), mode="bicubic"
    )
    return (blobs + 0.05 * torch.randn(n, 3, size, size, generator=generator)).clamp(0, 1)


def image_size(name: str) -> int:
    """Height and width of the images that a network is attacked on."""
    return 224 if name == "resnet50" else 32


def build_network(
    name: str, images: Tensor, *, width: int | None = None, depth: int | None = None
) -> nn.Module:
    """A network over [0, 1] images, in eval mode on the device of `images`.

    Args:
        name: "resnet18" or "wrn32-10" of `iaat_fast.models`, or "resnet50" of torchvision, all with random weights;
            "small"; or a checkpoint of the real data.
        images: float [N, 3, H, W], N at least 16, from which random networks take their statistics.
        width, depth: of "resnet18" and "wrn32-10"; None: their own.

    Raises:
        FileNotFoundError: a checkpoint without IAAT_FAST_DATA.
    """
    if name == SMALL:
        name, width, depth = "resnet18", 4, 10
    if name in CHECKPOINTS:
        net = checkpoint(name).to(images.device)
    else:
        torch.manual_seed(0)
        built = _resnet50() if name == "resnet50" else models.build(name, width=width, depth=depth)
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
    datasets()  # makes the import below work even if torchvision's compiled ops do not load
    from torchvision.models import resnet50

    return nn.Sequential(models.Normalize(*models.STATISTICS["imagenet"]), resnet50(weights=None))


@torch.no_grad()
def _calibrated(net: nn.Module, images: Tensor) -> nn.Module:
    """Make a random network similar to a trained one: BatchNorm is not the identity, and all classes occur.

    Freshly initialised, BatchNorm is the identity, one class takes all images, and rounding grows from block to block
    until half of the signs of a ResNet-50's gradient flip in bfloat16. So the last layer reads the directions in which
    the images' features differ, after `take_statistics`.
    """
    generator = torch.Generator().manual_seed(0)
    take_statistics(net, images, generator)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    features = _inputs(last, net, images)
    mean = features.mean(0)
    _, sizes, directions = torch.linalg.svd(features - mean, full_matrices=False)
    most = min(_DIRECTIONS, len(features) - 1)
    mix = torch.randn(last.out_features, most, generator=generator).to(images.device)
    # Along each direction the images' coordinates get variance 1, so that no prediction is too confident.
    scale = (len(features) / most) ** 0.5 / sizes[:most]
    last.weight.copy_((mix * scale) @ directions[:most])
    last.bias.copy_(-(last.weight @ mean))
    return net


@torch.no_grad()
def take_statistics(
    net: nn.Module,
    images: Tensor,
    generator: torch.Generator,
    *,
    weight: float = 1.0,
    bias: float = 0.0,
) -> None:
    """Give BatchNorm the statistics of the images, and random weights and biases of these means.

    The weights are smaller where a block joins its shortcut. Afterwards the network is in eval mode.
    """
    for norm in net.modules():
        if isinstance(norm, _BatchNorm) and norm.affine:
            norm.weight.copy_(0.75 + 0.5 * torch.rand(len(norm.weight), generator=generator))
            norm.weight.mul_(weight)
            norm.bias.copy_(bias + 0.2 * torch.randn(len(norm.bias), generator=generator))
    for block in net.modules():
        norms = [child for child in block.children() if isinstance(child, _BatchNorm)]
        if len(norms) > 1:
            norms[-1].weight.mul_(_BRANCH)
            norms[-1].bias.mul_(_BRANCH)
    for norm in net.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = 1.0  # the statistics of the next batch
    net.train()
    net(images)
    net.eval()


def _inputs(layer: nn.Module, net: nn.Module, images: Tensor) -> Tensor:
    """The input of a layer, [N, features]."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(images)
    hook.remove()
    return seen[0]


def load_trained(
    name: str, n: int, device: str | torch.device
) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A trained network, the first n test images [n, 3, 32, 32] in multiples of 1/255, their classes, a description.

    "small" is for rehearsals: a random network, and random images with its own predictions.

    Raises:
        FileNotFoundError: IAAT_FAST_DATA names no folder of real data.
    """
    y: Tensor | None
    if name == SMALL:
        x, source = smooth_noise(n, 32).mul(255).round().div(255), "random, smooth, 32x32"
        net = build_network(SMALL, smooth_noise(64, 32))
        with torch.no_grad():
            y = net(x).argmax(1)
    else:
        net = checkpoint(name)
        x, y, source = load_images(n, 32)
        assert y is not None  # as there is a folder of real data
    return net.to(device), x.to(device), y.to(device), source


def as_split(x: Tensor, y: Tensor) -> Split:
    """Images [N, 3, H, W] in [0, 1], in multiples of 1/255, as a split of uint8 images."""
    return Split(x.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous(), y)
