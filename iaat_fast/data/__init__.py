"""Image data sets, whole in memory or as files decoded when they are needed, and batches of them."""

from __future__ import annotations

from iaat_fast.data.adapt import as_image_data, as_samples
from iaat_fast.data.arrays import FloatSplit
from iaat_fast.data.dataset import DatasetSplit
from iaat_fast.data.decoding import UnreadableImage
from iaat_fast.data.folder import ON_BAD_IMAGE, FolderSplit
from iaat_fast.data.loading import NAMES, load
from iaat_fast.data.splits import ImageData, Samples, Split, epoch_order, fetch

__all__ = [
    "NAMES",
    "ON_BAD_IMAGE",
    "DatasetSplit",
    "FloatSplit",
    "FolderSplit",
    "ImageData",
    "Samples",
    "Split",
    "UnreadableImage",
    "as_image_data",
    "as_samples",
    "epoch_order",
    "fetch",
    "load",
]
