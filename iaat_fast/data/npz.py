"""Images from a plain `.npz`, the way for users to bring their own.

The file holds four arrays: `x_train` and `x_test`, uint8 [N, H, W, C] with 1 or 3 channels or
[N, H, W], both of one image shape, and `y_train` and `y_test`, integers [N] from 0.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iaat_fast.data.splits import ImageData, Split, looks_like_nchw

KEYS = ("x_train", "y_train", "x_test", "y_test")
# A label beyond this is damage, not a class: ImageNet-21k, the largest in common use, has 21,841.
MAX_CLASSES = 2**16


def load_npz(path: Path, name: str, *, max_classes: int | None = None) -> ImageData:
    """Load `path` as the data set `name`, with the largest label + 1 as its number of classes.

    Args:
        path: the file, see the module's description.
        name: what the data is called.
        max_classes: how many classes `name` has; None: no limit.

    Raises:
        ValueError: naming the file, the key, what was found and what was expected. Pickled objects
            are refused, never executed.
    """
    arrays = _read(path)
    train = _split(path, arrays, "train")
    test = _split(path, arrays, "test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{path}: x_test: expected images of shape {list(train.images.shape[1:])} as in "
            f"x_train, got {list(test.images.shape[1:])}"
        )
    for key, split in (("y_train", train), ("y_test", test)):
        highest = int(split.labels.max())
        if max_classes is not None and highest >= max_classes:
            raise ValueError(
                f"{path}: {key}: expected labels 0 .. {max_classes - 1} for {name}, got {highest}"
            )
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    return ImageData(name, train, test, num_classes)


def _read(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:  # is_zipfile would call a file that cannot be opened no archive
        whole = zipfile.is_zipfile(file)
    if not whole:
        raise ValueError(
            f"{path}: expected an .npz file with {', '.join(KEYS)}, got something that is no zip "
            "archive, or a truncated one"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: _read_key(path, file, key) for key in KEYS}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: expected an .npz file, got a damaged one: {error}") from error


def _read_key(path: Path, file: Any, key: str) -> np.ndarray:
    if key not in file.files:
        raise ValueError(
            f"{path}: {key} is missing, expected {', '.join(KEYS)}, got "
            f"{', '.join(file.files) or 'none'}"
        )
    try:
        array = file[key]
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: {key}: expected a plain numeric array, could not read it: {error}"
        ) from error
    # numpy returns the bytes of a member that is no array.
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key}: expected an array, got {type(array).__name__}")
    return array


def _split(path: Path, arrays: dict[str, np.ndarray], part: str) -> Split:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    images = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        nchw = images.ndim == 4 and looks_like_nchw(images.shape)
        raise ValueError(
            f"{path}: x_{part}: expected uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], got "
            f"{x.dtype} {list(x.shape)}{', which looks like [N, C, H, W]' if nchw else ''}"
        )
    if x.size == 0:
        raise ValueError(f"{path}: x_{part}: expected at least one image, got {list(x.shape)}")
    if int(x.max()) <= 1:
        raise ValueError(
            f"{path}: x_{part}: no pixel above {int(x.max())}, expected values 0 .. 255; are these fractions of 1, "
            "rounded to whole numbers?"
        )
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(
            f"{path}: y_{part}: expected integers [{len(x)}], one per image of x_{part}, got "
            f"{y.dtype} {list(y.shape)}"
        )
    lowest, highest = int(y.min()), int(y.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        raise ValueError(
            f"{path}: y_{part}: expected labels 0 .. {MAX_CLASSES - 1}, got {lowest} .. {highest}"
        )
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(y.astype(np.int64))
    )
