"""`load`: a data set by its name: embedded, from a folder, downloaded, or from an .npz."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from iaat_fast import validate
from iaat_fast.data.cifar import CIFAR_CLASSES, load_cifar
from iaat_fast.data.folder import ON_BAD_IMAGE, load_folder
from iaat_fast.data.npz import load_npz
from iaat_fast.data.splits import ImageData, Split

NAMES: tuple[str, ...] = ("digits", *CIFAR_CLASSES, "imagenet")


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    download: bool = True,
    workers: int | None = None,
    on_bad_image: str = "stop",
) -> ImageData:
    """Load a data set: whole into memory, or as image files that are decoded when they are needed.

    Args:
        name: "digits" (embedded: scikit-learn's 8x8 handwritten digits), "cifar10", "cifar100" or "imagenet".
        path: a folder with the CIFAR data (its archive, extracted or not), for ImageNet a folder with
            train/CLASS/IMAGE and val/CLASS/IMAGE; or, for every name, an `.npz` with
            `x_train, y_train, x_test, y_test` (see `iaat_fast.data.npz`).
            None: for CIFAR, `$XDG_CACHE_HOME/iaat_fast` (by default `~/.cache/iaat_fast`).
        limit: keep the first `limit` samples of train and of test. ImageNet's are numbered through the classes in
            turn, so the first ones are spread over all classes.
        download: fetch CIFAR from its authors' site into the folder if it is not there. A `path` that
            does not exist is an error even so: it is more often a typing error than a folder to make.
        workers: of ImageNet: processes that decode training images, and threads that decode test images; None: one
            per core, 16 at most.
        on_bad_image: of ImageNet, at a file that cannot be decoded: "stop", raise; "skip", leave it out. Test images
            are decoded here, training images when they are needed; a training image that is left out keeps its number.

    Returns:
        ImageData on the CPU. `num_classes` is the data set's own, or for an `.npz` its largest
        label + 1; `limit` does not change it.

    Raises:
        ValueError: an unknown name, a limit below 1, or data that is damaged or not as described; ImageNet without
            torchvision.
        FileNotFoundError: no data there, and none could be downloaded.
    """
    validate.choice("name", name, NAMES)
    validate.integer("limit", limit, 1, optional=True)
    validate.choice("on_bad_image", on_bad_image, ON_BAD_IMAGE)

    source = None if path is None else Path(path).expanduser()
    if source is not None and not source.exists():
        raise FileNotFoundError(f"path {source}: no such folder or .npz to load {name} from")
    if source is not None and not source.is_dir():
        data = load_npz(source, name, max_classes=CIFAR_CLASSES.get(name))
    elif name == "imagenet":
        if source is None:
            raise ValueError("imagenet: expected a folder with train/ and val/ (--data), got none")
        return load_folder(source, name, limit=limit, workers=workers, on_bad_image=on_bad_image)
    elif name in CIFAR_CLASSES:
        data = load_cifar(name, cache_folder() if source is None else source, download=download)
    elif source is None:
        data = load_digits()
    else:
        raise ValueError(
            f"path {source}: {name} is embedded, expected an .npz or no path, got a folder"
        )

    if limit is None:
        return data
    return ImageData(name, data.train.first(limit), data.test.first(limit), data.num_classes)


def cache_folder() -> Path:
    """The folder of downloaded data sets; it need not exist."""
    # By the XDG specification an empty variable counts as unset.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iaat_fast"


def load_digits() -> ImageData:
    """The UCI repository's optical digits (Alpaydin and Kaynak, 1998) as scikit-learn embeds them.

    The split is stratified by class and always the same.
    """
    try:
        from sklearn.datasets import load_digits as embedded_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ValueError(
            "digits: embedded in scikit-learn, which is not installed: pip install 'iaat-fast[train]'"
        ) from error

    digits = embedded_digits()
    # Values are whole numbers 0..16; rounded to the nearest of 0..255, 16 becomes 255.
    images = torch.from_numpy(np.rint(digits.images * 255 / 16).astype(np.uint8)).unsqueeze(-1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=digits.target, random_state=0
    )
    return ImageData(
        "digits", Split(images[train], labels[train]), Split(images[test], labels[test]), 10
    )
