"""One image file to pixels: PIL and torchvision's transforms, as ImageNet is trained on and measured on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iaat_fast.data._torchvision import torchvision

SIZE = 224
"""Height and width of the images that the network sees."""
RESIZED = 256
"""Shorter side from which the centre is cropped."""


class UnreadableImage(ValueError):
    """An image file that cannot be decoded; the message names it and says why."""


@functools.cache
def training_transform() -> Any:
    """A random part of 8 to 100 % of the area, resized to `SIZE`, and a flip by chance: uint8 [3, H, W]."""
    v2 = torchvision("transforms.v2")
    return v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()])


@functools.cache
def test_transform() -> Any:
    """The centre `SIZE` x `SIZE` of the image resized to `RESIZED`: uint8 [3, H, W]."""
    v2 = torchvision("transforms.v2")
    return v2.Compose([v2.Resize(RESIZED), v2.CenterCrop(SIZE), v2.PILToTensor()])


def decode(path: Path, transform: Any) -> torch.Tensor:
    """The RGB image in `path`, transformed.

    Raises:
        UnreadableImage: the file is missing, cut short or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{path}: not an image in a format that PIL knows") from error
    # Damaged bytes end in whatever the decoder trips over.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{path}: not a readable image ({reason})") from error
    pixels: torch.Tensor = transform(image)
    return pixels


def decode_augmented(path: Path, *, seed: int, number: int) -> torch.Tensor:
    """`decode` for training; what is drawn is a function of the seed and the sample's number alone."""
    key = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
    # The transforms draw from torch's generator, which is the model's (dropout) and must not move. Not by
    # torch.manual_seed, which would seed the GPUs' generators too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        return decode(path, training_transform())
