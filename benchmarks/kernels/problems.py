"""The sizes each op is measured at."""

from __future__ import annotations

import dataclasses
import math

import torch

ROW = 3 * 32 * 32
"""Elements of a row of the flat sizes: a CIFAR image."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Problem:
    """N rows of images (or of logits, or of uint8 images to augment) and K candidates for each.

    A problem that claims DRAM `bandwidth` rotates among buffers far larger than the L2 cache; the others are small,
    and what counts is the time of a call.
    """

    label: str
    shape: tuple[int, ...]
    k: int
    dtype: torch.dtype
    bandwidth: bool
    outputs: int = 0
    """Channels that the stem makes of an image's."""

    @property
    def numel(self) -> int:
        return self.k * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class LayerProblem(Problem):
    """Values [N, C, H, W] inside a network, and whether a branch joins them there."""

    channels_last: bool = True
    branch: bool = False


def image_problems(dtype: torch.dtype, *, quick: bool, on_gpu: bool) -> list[Problem]:
    """For the elementwise ops: batches of CIFAR and ImageNet, and flat sizes."""
    if quick:
        return [
            Problem("CIFAR 8", (8, 3, 32, 32), 1, dtype, False),
            Problem("CIFAR 3x8", (8, 3, 32, 32), 3, dtype, False),
        ]
    found = [
        Problem("CIFAR 128", (128, 3, 32, 32), 1, dtype, False),
        Problem("CIFAR 3x128", (128, 3, 32, 32), 3, dtype, False),
        Problem("ImageNet 32", (32, 3, 224, 224), 1, dtype, True),
        Problem("ImageNet 3x64", (64, 3, 224, 224), 3, dtype, True),
        # 149,187 elements a row: no row but the first begins at a multiple of 16 bytes.
        Problem("odd rows 32", (32, 3, 223, 223), 1, dtype, True),
        _flat("64 MiB", 64 * 2**20, dtype),
    ]
    # 1 GiB in every tensor is more than most machines without such a GPU care to give.
    return [*found, _flat("1 GiB", 2**30, dtype)] if on_gpu else found


def logits_problems(dtype: torch.dtype, *, quick: bool, candidates: int | None) -> list[Problem]:
    """For the ops over logits [K*N, C]; `candidates` fixes K."""
    found = [
        Problem("128x10", (128, 10), 1, dtype, False),
        Problem("384x10", (128, 10), 3, dtype, False),
        Problem("384x1000", (128, 1000), 3, dtype, False),
    ]
    return [p for p in found if candidates in (None, p.k)][: 1 if quick else None]


def layer_problems(dtype: torch.dtype, *, quick: bool) -> list[Problem]:
    """For the passes of a network: ResNet-18's first and last stage at a CIFAR batch of 128.

    A network's own buffers, of 17 MB each in bfloat16, are partly found in the L2 cache; these are read from DRAM.
    """
    if quick:
        return [LayerProblem("8 of 64x8x8", (8, 64, 8, 8), 1, dtype, False)]
    first, last = (128, 64, 32, 32), (128, 512, 4, 4)
    found: list[Problem] = [
        LayerProblem("64x32x32", first, 1, dtype, True),
        LayerProblem("64x32x32 + branch", first, 1, dtype, True, branch=True),
        LayerProblem("512x4x4 + branch", last, 1, dtype, False, branch=True),
        LayerProblem(
            "contiguous 64x32x32 + branch", first, 1, dtype, True, channels_last=False, branch=True
        ),
    ]
    return found


def augment_problems(*, quick: bool) -> list[Problem]:
    """For the augmentation: images drawn out of a data set of 16 times as many."""
    if quick:
        return [Problem("CIFAR 8", (8, 3, 32, 32), 1, torch.uint8, False)]
    small = Problem("CIFAR 128", (128, 3, 32, 32), 1, torch.uint8, False)
    large = [
        Problem("CIFAR 4096", (4096, 3, 32, 32), 1, torch.uint8, True),
        Problem("ImageNet 64", (64, 3, 224, 224), 1, torch.uint8, True),
    ]
    return [small, *large]


def stem_problems(dtype: torch.dtype, *, quick: bool) -> list[Problem]:
    """For the stem, in half precision (a float32 one is torch's own): usual widths, on CIFAR and ImageNet."""
    if dtype is torch.float32:
        return []
    if quick:
        return [Problem("CIFAR 8 to 16", (8, 3, 32, 32), 1, dtype, False, 16)]
    found = [
        Problem("CIFAR 128 to 64", (128, 3, 32, 32), 1, dtype, False, 64),
        Problem("CIFAR 3x128 to 64", (128, 3, 32, 32), 3, dtype, False, 64),
        Problem("CIFAR 128 to 160", (128, 3, 32, 32), 1, dtype, False, 160),
        Problem("CIFAR 128 to 16", (128, 3, 32, 32), 1, dtype, False, 16),
        Problem("ImageNet 32 to 64", (32, 3, 224, 224), 1, dtype, True, 64),
    ]
    return found


def _flat(label: str, size: int, dtype: torch.dtype) -> Problem:
    """Tensors of at least `size` bytes."""
    rows = -(-size // (ROW * dtype.itemsize))
    return Problem(label, (rows, ROW), 1, dtype, True)
