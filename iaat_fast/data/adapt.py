"""Turns a user's data (tensors, numpy arrays, a Dataset, a DataLoader) into samples to evaluate or to train on."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from iaat_fast.data.arrays import FloatSplit, as_labels, as_tensor, check_images
from iaat_fast.data.dataset import DatasetSplit, refuse_other_orders
from iaat_fast.data.splits import ImageData, Samples, Split

logger = logging.getLogger("iaat_fast")

_INTERFACE = ("labels", "channels", "to", "first", "gather", "identity")
# How far a float pixel may lie from a whole number of 1/255, of the 0.004 between two: ten roundings of float32.
_WHOLE = 1e-6
_AT_ONCE = 256  # images


def as_samples(data: Any, y: Any = None, *, device: torch.device | str | None = None) -> Samples:
    """Images with their labels, in any of the forms below, as samples for evaluations.

    Only what is needed is copied: float images stay where they are, and batches of them go to `device`; a Dataset or
    DataLoader is read batch by batch, when images are needed. Of a DataLoader the workers and the `collate_fn` are
    used, but not its batch size and `pin_memory`.

    Args:
        data: with y, images: uint8 [N, H, W, C] or floats [N, C, H, W] in [0, 1], a tensor or numpy array. Without y:
            a tuple (x, y) of the two; a map-style torch Dataset of (image, int), the image a PIL image of mode L or
            RGB, or a tensor or array like one of the above; a DataLoader of such a Dataset, in order and without
            `drop_last`; or samples of this library, which are returned as they are.
        y: labels [N], whole numbers from 0, a tensor, numpy array or sequence.
        device: of the batches; None: that of the images, for a Dataset the CPU. Samples of this library stay on their
            device.

    Raises:
        TypeError, ValueError: another form, or an ambiguous one: pixels outside [0, 1], channels in another place,
            labels that are one-hot, no whole numbers or of another length, a DataLoader that shuffles, a Dataset that
            augments, an empty set.
    """
    if isinstance(y, (int, float)):
        raise TypeError(f"y: {y}, expected the labels of x, [N]; a radius is passed as eps=")
    if y is not None:
        return _of_arrays(data, y, device)
    if all(hasattr(data, name) for name in _INTERFACE):
        if not len(data):
            raise ValueError("split: empty, expected at least 1 sample")
        return cast(Samples, data)
    if isinstance(data, ImageData):
        raise TypeError("data: an ImageData, expected one of its splits, `.train` or `.test`")
    if isinstance(data, (torch.Tensor, np.ndarray)):
        raise TypeError("y: None, expected the labels of x")
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise TypeError(f"data: a {type(data).__name__} of {len(data)}, expected (x, y)")
        return _of_arrays(data[0], data[1], device)
    tensors = _tensors_behind(data)
    if tensors is not None:
        return _of_arrays(*tensors, device)
    return DatasetSplit(data, "cpu" if device is None else device)


def as_image_data(train: Any, test: Any, *, name: str) -> ImageData:
    """Two sets of images, each as `as_samples` takes them, as a data set to train on.

    Training holds its images as uint8 in memory and augments them there. Floats are converted, which is exact for
    multiples of 1/255, as torchvision's `ToTensor` makes them; a Dataset or DataLoader is read once.

    Args:
        train, test: to train on, and to measure on.
        name: of the data set.

    Returns:
        ImageData; its number of classes is the largest label + 1.

    Raises:
        TypeError, ValueError: see `as_samples`; or floats that are no multiples of 1/255. The message starts with
            "train: " or "test: ".
    """
    splits: dict[str, Samples] = {}
    for part, given in (("train", train), ("test", test)):
        try:
            splits[part] = _in_memory(as_samples(given), part)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{part}: {error}") from error
    classes = 1 + max(int(split.labels.max()) for split in splits.values())
    return ImageData(name, splits["train"], splits["test"], classes)


def _of_arrays(x: Any, y: Any, device: torch.device | str | None) -> Samples:
    images = as_tensor("x", x)
    check_images("x", images)
    if y is None:
        raise TypeError("y: None, expected the labels of x")
    labels = as_labels(y, len(images)).to(images.device if device is None else device)
    if images.dtype == torch.uint8:
        return Split(images.to(labels.device), labels)
    return FloatSplit(images, labels)


def _tensors_behind(data: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The images and labels of a TensorDataset, or of a DataLoader of one that does not change them; else None."""
    dataset = data
    if isinstance(data, DataLoader):
        refuse_other_orders(data)
        dataset = data.dataset if data.collate_fn is default_collate else None
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        images, labels = dataset.tensors
        return images, labels
    return None


def _in_memory(samples: Samples, part: str) -> Samples:
    """Samples for training: this library's unchanged, others as uint8 in memory."""
    if isinstance(samples, FloatSplit):
        parts = [_whole(x) for x in samples.images.split(_AT_ONCE)]
    elif isinstance(samples, DatasetSplit):
        numbers = torch.arange(len(samples)).split(_AT_ONCE)
        parts = [_whole(samples.pixels(some)) for some in numbers]
    else:
        return samples
    images = torch.cat(parts)
    logger.info("%s: %d images held in memory, %d MiB", part, len(images), images.numel() >> 20)
    return Split(images, samples.labels.to(images.device))


def _whole(images: torch.Tensor) -> torch.Tensor:
    """Images of either form as uint8 [N, H, W, C]; ValueError for floats that are no multiples of 1/255."""
    if images.dtype == torch.uint8:
        return images
    scaled = images.double() * 255
    whole = scaled.round()
    off = (scaled - whole).abs()
    if float(off.max()) > 255 * _WHOLE:
        between = float(scaled.flatten()[off.argmax()])
        raise ValueError(
            f"x: a pixel of {between:.6g}/255, expected whole numbers of 1/255: training holds images as uint8"
        )
    return whole.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
