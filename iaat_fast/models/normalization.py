"""`normalized`: turns a model over normalised images into one over images in [0, 1], as attacks need it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from iaat_fast.models.layers import Normalize


def normalized(
    model: nn.Module, mean: Sequence[float] | torch.Tensor, std: Sequence[float] | torch.Tensor
) -> nn.Sequential:
    """A model that normalises images in [0, 1] by channel and passes them to `model`.

        network = normalized(timm.create_model("resnet18"), *STATISTICS["imagenet"])
        PGD(network, eps=4 / 255, alpha=1 / 255, steps=10)(x, y)

    Radii and step sizes are then on the [0, 1] scale, the same for every channel.

    Args:
        model: takes (x - mean) / std, float [N, C, H, W], on one device. It is not copied: its mode and weights are
            the result's `model`, in the state dict after "model.".
        mean: C numbers in [0, 1], subtracted.
        std: C numbers above 0 up to 1, by which the difference is divided.

    Returns:
        A module over float [N, C, H, W] in [0, 1], in the mode of `model`, with mean and std as buffers on its device.

    Raises:
        TypeError, ValueError: an argument is not as described; numbers on the scale of 0 ... 255.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: {type(model).__name__}, expected an nn.Module")
    values = {"mean": _channels("mean", mean), "std": _channels("std", std)}
    for name, numbers in values.items():
        if not all(0 <= value <= 1 for value in numbers):
            scale = "; divide by 255?" if max(numbers) > 1 else ""
            raise ValueError(f"{name}: {numbers}, expected numbers in [0, 1]{scale}")
    layer = Normalize(values["mean"], values["std"])
    weight: Any = next(model.parameters(), next(model.buffers(), None))
    if weight is not None:
        layer = layer.to(weight.device)
    made = nn.Sequential(OrderedDict(normalize=layer, model=model))
    made.training = layer.training = model.training
    return made


def _channels(name: str, values: Sequence[float] | torch.Tensor) -> list[float]:
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: {values!r}, expected a number per channel") from error
    if numbers.dim() != 1 or not len(numbers):
        raise ValueError(f"{name}: shape {list(numbers.shape)}, expected [C], a number per channel")
    found: list[float] = numbers.tolist()
    return found
