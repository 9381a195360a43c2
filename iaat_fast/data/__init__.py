"""Image data sets held whole as uint8, and batches gathered and augmented on their device."""

from __future__ import annotations

from iaat_fast.data.batches import epoch_order, fetch
from iaat_fast.data.loading import NAMES, load
from iaat_fast.data.splits import ImageData, Split

__all__ = ["NAMES", "ImageData", "Split", "epoch_order", "fetch", "load"]
