"""Networks by name: `build` makes one of the presets', `load_factory` imports a user's "package.module:function"."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from iaat_fast import torchvision_ops, validate
from iaat_fast.models.digits_cnn import DigitsCNN
from iaat_fast.models.imagenet_resnet import BLOCKS, ImageNetResNet
from iaat_fast.models.layers import STATISTICS, Normalize
from iaat_fast.models.resnet import ResNet, WideResNet


class _Default(NamedTuple):
    width: int
    depth: int
    in_channels: int


_DEFAULTS = {
    "digits-cnn": _Default(width=32, depth=3, in_channels=1),
    "resnet18": _Default(width=64, depth=18, in_channels=3),
    "wrn32-10": _Default(width=10, depth=32, in_channels=3),
    **{
        f"imagenet-resnet{depth}": _Default(width=64, depth=depth, in_channels=3)
        for depth in BLOCKS
    },
}
NAMES: tuple[str, ...] = tuple(_DEFAULTS)


def build(
    name: str,
    *,
    num_classes: int = 10,
    width: int | None = None,
    depth: int | None = None,
    in_channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Build a freshly initialised network over images in [0, 1].

    It maps float [N, in_channels, H, W], H and W at least 8, to logits [N, num_classes]. Its weights are stored
    channels last, which convolutions on CPUs and on tensor cores prefer: forward and input gradient of "digits-cnn" are
    1.2 times faster on two cores.

    Args:
        name: "digits-cnn" (`DigitsCNN`), "resnet18" (`ResNet`), "wrn32-10" (`WideResNet`), or "imagenet-resnet18",
            -34, -50, -101 and -152 (`ImageNetResNet`).
        num_classes: number of logits.
        width: channels of the first convolution ("digits-cnn", 32), channels of the first stage
            ("resnet18" and "imagenet-resnet...", 64) or the widening factor ("wrn32-10", 10).
        depth: number of layers: 8n + 2 for "resnet18" (18), 6n + 2 for "wrn32-10" (32);
            the others have one depth, that of their name.
        in_channels: channels of the images; None: 1 for "digits-cnn", 3 for the others.
        mean: per-channel mean the model subtracts first; None: that of the digits for one channel,
            of CIFAR-10 (of ImageNet for "imagenet-resnet...") for three. `STATISTICS` has
            CIFAR-100's. Kept in the state dict, except for "imagenet-resnet...", whose state dict is
            torchvision's.
        std: per-channel standard deviation it divides by; given if and only if `mean` is.

    Raises:
        ValueError: an unknown name, or a number that the network cannot have.
    """
    validate.choice("name", name, NAMES)
    default = _DEFAULTS[name]
    width = default.width if width is None else width
    depth = default.depth if depth is None else depth
    in_channels = default.in_channels if in_channels is None else in_channels
    for argument, value in (("num_classes", num_classes), ("width", width), ("depth", depth)):
        validate.integer(argument, value, 1)
    num_classes, width, depth = int(num_classes), int(width), int(depth)  # of numpy's integers

    imagenet = name.startswith("imagenet-")
    if (name == "digits-cnn" or imagenet) and depth != default.depth:
        raise ValueError(f"depth: {depth}, expected {default.depth}, the only one of {name}")
    if mean is None and std is None and imagenet and in_channels == 3:
        mean, std = STATISTICS["imagenet"]
    normalization = _normalization(in_channels, mean, std, persistent=not imagenet)
    if name == "digits-cnn":
        model: nn.Module = DigitsCNN(normalization, in_channels, num_classes, width)
    else:
        network = ImageNetResNet if imagenet else ResNet if name == "resnet18" else WideResNet
        model = network(normalization, in_channels, num_classes, width, depth)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs


def build_for(
    dataset: str,
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    width: int | None = None,
    depth: int | None = None,
) -> nn.Module:
    """`build` a network for the images of a data set: its channels, and its mean and deviation.

    Args:
        dataset: its name. If it is not in `STATISTICS`, or is there with another number of channels,
            mean and deviation are the defaults of `build`.
        name, num_classes, in_channels, width, depth: see `build`.
    """
    mean, std = STATISTICS.get(dataset, ((), ()))
    known = len(mean) == in_channels
    return build(
        name,
        num_classes=num_classes,
        width=width,
        depth=depth,
        in_channels=in_channels,
        mean=mean if known else None,
        std=std if known else None,
    )


def _normalization(
    in_channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    persistent: bool,
) -> Normalize:
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std: expected both or neither, got mean={mean}, std={std}")
    if mean is None or std is None:
        by_channels = {1: STATISTICS["digits"], 3: STATISTICS["cifar10"]}
        if in_channels not in by_channels:
            raise ValueError(
                f"in_channels: {in_channels}, expected 1 or 3, or mean and std to be given"
            )
        mean, std = by_channels[in_channels]
    if len(mean) != in_channels:
        raise ValueError(f"mean: {list(mean)}, expected {in_channels} values, one per channel")
    return Normalize(mean, std, persistent=persistent)


def load_factory(spec: str) -> Callable[..., nn.Module]:
    """Import the callable that `spec` names: a function, or a class of modules.

    The module is searched for where Python searches: with `python -m`, the current directory first.
    Importing it runs its code. It may import torchvision, also one whose compiled ops do not load with this torch.

    Args:
        spec: "package.module:function"; "function" may be dotted ("Class.method").

    Returns:
        The callable; calling it raises TypeError unless it returns an `nn.Module`.

    Raises:
        ValueError: `spec` is not of that form, its module cannot be imported or has no such name.
        TypeError: the name is not a callable.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f"model factory: {spec!r}, expected 'package.module:function'")
    torchvision_ops.declare()
    try:
        target: Any = importlib.import_module(module_name)
    # It is the user's code and may raise anything while it is imported.
    except Exception as error:
        raise ValueError(
            f"model factory {spec!r}: importing {module_name} failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(target, name):
            raise ValueError(f"model factory {spec!r}: {target!r} has no {name!r}")
        target = getattr(target, name)
    if not callable(target):
        raise TypeError(f"model factory {spec!r}: {type(target).__name__}, expected a callable")

    def factory(*args: Any, **kwargs: Any) -> nn.Module:
        model = target(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model factory {spec!r}: returned {type(model).__name__}, expected an nn.Module"
            )
        return model

    return factory
