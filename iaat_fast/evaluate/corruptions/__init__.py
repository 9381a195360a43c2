"""Accuracy under common corruptions: those published (CIFAR-10-C, CIFAR-100-C, ImageNet-C), or generated here.

    from iaat_fast.evaluate.corruptions import measure_corruptions, open_corruptions, summarise

    images = open_corruptions(data.test, dataset="cifar10", folder=Path("CIFAR-10-C"))
    measured = list(measure_corruptions(model, images))
    print(summarise([m.row for m in measured], images)["mean_accuracy"])

Every row says whether its images are the published files ("official") or were made here ("generated"). These are
different images, whose accuracies must not be compared.
"""

from __future__ import annotations

from pathlib import Path

from iaat_fast.data import Samples
from iaat_fast.data.loading import cache_folder
from iaat_fast.evaluate.corruptions.base import (
    ALEXNET_ERRORS,
    ALL,
    MAIN,
    CorruptedImages,
    image_shape,
)
from iaat_fast.evaluate.corruptions.cifar_c import LABELS, CifarC
from iaat_fast.evaluate.corruptions.generated import GeneratedCorruptions, can_be_generated
from iaat_fast.evaluate.corruptions.imagenet_c import ImageNetC
from iaat_fast.evaluate.corruptions.measure import (
    Measured,
    footnotes,
    mean_corruption_error,
    measure_corruptions,
    summarise,
)

__all__ = [
    "ALEXNET_ERRORS",
    "ALL",
    "MAIN",
    "CifarC",
    "CorruptedImages",
    "GeneratedCorruptions",
    "ImageNetC",
    "Measured",
    "can_be_generated",
    "footnotes",
    "mean_corruption_error",
    "measure_corruptions",
    "open_corruptions",
    "summarise",
]

FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
"""What the published folders are called, by data set."""


def open_corruptions(
    split: Samples,
    *,
    dataset: str,
    folder: Path | None = None,
    data: Path | None = None,
    seed: int = 0,
) -> CorruptedImages:
    """Open the corruptions of `split` and check that they are those of its images, before any work is done.

    Args:
        split: the test split.
        dataset: its name, one of `iaat_fast.data.NAMES`.
        folder: the published files. None: the folder CIFAR-10-C, CIFAR-100-C or ImageNet-C in or next to `data`;
            if there is none, the corruptions are generated.
        data: path of the data set itself; None: that of `data.load`.
        seed: of generated corruptions.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no corruption.
        ValueError: the files are of another data set, or the images are too small to corrupt, or generating them needs
            the extra "corruptions".
    """
    if folder is None:
        folder = published(dataset, cache_folder() if data is None else data)
    if folder is not None:
        return open_published(folder, split)
    natural = dataset == "imagenet"
    return GeneratedCorruptions(
        split, seed=seed, names=MAIN if natural else ALL, normalised=natural
    )


def published(dataset: str, data: Path) -> Path | None:
    """The folder of published corruptions in or next to `data`, or None."""
    name = FOLDERS.get(dataset)
    if name is None:
        return None
    return next((path for path in (data / name, data.parent / name) if path.is_dir()), None)


def open_published(folder: Path, split: Samples) -> CifarC | ImageNetC:
    """Open a folder that has the layout of CIFAR-10-C or of ImageNet-C.

    Raises:
        FileNotFoundError: there is no such folder, or it has neither layout.
        ValueError: it belongs to another data set.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of corruptions")
    if (folder / LABELS).is_file() or any((folder / f"{name}.npy").is_file() for name in ALL):
        return CifarC(folder, split)
    if any((folder / name).is_dir() for name in ALL):
        return ImageNetC(folder, split, size=_side(split))
    raise FileNotFoundError(
        f"{folder}: holds no corruptions: expected {ALL[0]}.npy ... and {LABELS} as in CIFAR-10-C, or "
        f"{ALL[0]}/1/<wnid>/*.JPEG ... as in ImageNet-C"
    )


def _side(split: Samples) -> int | None:
    height, width, _ = image_shape(split)
    return height if height == width else None
