"""Images to attack: CIFAR-10 where it is at hand, else smooth random ones."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast import data


def load(n: int, size: int, source: Path | None = None) -> tuple[Tensor, Tensor | None, str]:
    """n images and what they are, in words.

    Args:
        n: number of images, repeated where there are fewer.
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
    """float32 [n, 3, size, size] in [0, 1]: blobs and some noise; neighbouring pixels are alike, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    blobs = F.interpolate(
        torch.rand(n, 3, 6, 6, generator=generator), size=(size, size), mode="bicubic"
    )
    return (blobs + 0.05 * torch.randn(n, 3, size, size, generator=generator)).clamp(0, 1)
