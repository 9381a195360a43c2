"""Batches: the order of an epoch, and images gathered by index and augmented on their device."""

from __future__ import annotations

import numpy as np
import torch

from iaat_fast.data.splits import Split

PAD = 4  # pixels of reflected border a crop may reach into, as usual on CIFAR


def epoch_order(n: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order in which epoch `epoch` visits `n` samples: a pure function of its arguments.

    Nothing is carried from epoch to epoch, so a resumed run finds its order without replaying the
    ones before, and every rank computes the same one.

    Returns:
        int64 [n] on the CPU, a permutation of 0 .. n-1.

    Raises:
        ValueError: a negative argument.
    """
    for name, value in (("n", n), ("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{name}: expected 0 or more, got {value}")
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def fetch(
    split: Split,
    index: torch.Tensor,
    *,
    augment: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the samples `index` as a float batch, with or without augmentation.

    Augmentation is the usual one on CIFAR: reflect-pad by 4 pixels, crop at a random place back to
    H x W, flip left-right with probability 1/2. It is one gather by computed pixel numbers on the
    split's device; no padded copy is made. One number per sample is drawn, from `generator`, so the
    batch is a pure function of `index` and the generator's state.

    Args:
        split: where to gather from.
        index: int64 [B], sample numbers, on any device.
        augment: crop and flip at random.
        generator: on any device; a CPU generator gives the same crops whatever the split's device.
            None: torch's default generator of the split's device.

    Returns:
        x float32 [B, C, H, W] in [0, 1] (pixel / 255), contiguous, and y int64 [B], both on the
        split's device.

    Raises:
        TypeError: `index` is not int64.
        ValueError: `index` is not [B], or the images are too small to reflect 4 pixels.
        IndexError: a number outside 0 .. len(split)-1 (where `index` lies on the CPU; on a GPU
            the check would cost a synchronisation and is left to the gather).
    """
    _check_index(index, len(split))
    device = split.images.device
    index = index.to(device)
    y = split.labels.index_select(0, index)
    batch, height, width, channels = len(index), *split.images.shape[1:]
    # Whole images first (one memcpy each), then single pixels of the small batch: 0.8 ms at
    # [128, 3, 32, 32] on two cores, where gathering pixels from the whole set took 6.7 ms.
    planes = split.images.index_select(0, index).permute(0, 3, 1, 2)
    if augment:
        pixels = _augmented_pixels(batch, height, width, generator, device)
        planes = planes.reshape(batch, channels, height * width).gather(
            2, pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1)
        )
    x = torch.empty(batch, channels, height, width, device=device)
    x.copy_(planes.view_as(x))
    return x.div_(255), y


def _check_index(index: torch.Tensor, size: int) -> None:
    if index.dtype != torch.int64:
        raise TypeError(f"index: expected int64, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"index: expected shape [B], got {list(index.shape)}")
    if index.device.type == "cpu" and len(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise IndexError(f"index: expected numbers in 0 .. {size - 1}, got {low} .. {high}")


def _augmented_pixels(
    batch: int,
    height: int,
    width: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> torch.Tensor:
    """int64 [batch, height, width]: of each output pixel, its source as row * width + column."""
    if min(height, width) <= PAD:
        raise ValueError(
            f"augment: images of {height} x {width} are too small to reflect {PAD} pixels, "
            f"expected at least {PAD + 1} x {PAD + 1}"
        )
    places = 2 * PAD + 1
    draw_on = device if generator is None else generator.device
    draw = torch.randint(2 * places**2, (batch, 1), generator=generator, device=draw_on).to(device)
    flip = draw % 2 == 1
    down = draw // 2 // places - PAD
    right = draw // 2 % places - PAD
    columns = torch.arange(width, device=device)
    row = _reflect(torch.arange(height, device=device) + down, height)
    column = _reflect(torch.where(flip, width - 1 - columns, columns) + right, width)
    return row[:, :, None] * width + column[:, None, :]


def _reflect(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions up to `size - 1` outside 0 .. size-1, mirrored about the edge pixels."""
    last = size - 1
    return last - (last - position.abs()).abs()
