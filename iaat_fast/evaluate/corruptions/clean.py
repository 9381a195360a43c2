"""The clean images of a split as the corruptions need them: one by one, uint8."""

from __future__ import annotations

import numpy as np
import torch

from iaat_fast.data import Split, fetch


def pixels(split: Split, number: int) -> np.ndarray:
    """Sample `number`, uint8 [H, W, C]."""
    x, _ = fetch(split, torch.tensor([number], device=split.labels.device))
    # From pixel / 255 in float32, the nearest whole number is the pixel.
    return (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def image_shape(split: Split) -> tuple[int, int, int]:
    """H, W, C of the first image, which all are alike."""
    height, width, channels = pixels(split, 0).shape
    return height, width, channels
