"""ImageNet-C as published: a tree <corruption>/<severity>/<wnid>/*.JPEG."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iaat_fast.data import Split
from iaat_fast.data._torchvision import datasets
from iaat_fast.evaluate.corruptions.images import ImageSequence
from iaat_fast.evaluate.corruptions.names import MAIN, SEVERITIES


class Listing(NamedTuple):
    """What one severity of a corruption holds: its classes, sorted, and its files with their class numbers."""

    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]


class ImageNetC:
    """The published JPEGs of ImageNet-C, decoded as they are needed.

    Classes are numbered by their sorted wnids and images are ordered by class and name, as `ImageFolder` does.
    Images are taken as they are, 224x224, unless `size` asks for something else.

    Args:
        folder: holds `<corruption>/<severity>/<wnid>/*.JPEG`.
        split: the clean images in the same order, whose labels must agree; its length is how many are taken.
        limit: where there is no split: take the first `limit` images of each severity; None: all.
        size: height and width that the model takes; other images are cropped to a square and resized, bilinearly.

    Raises:
        FileNotFoundError: no corruption is there, whole.
        ValueError: the labels are not those of `split`.
        ImportError: torchvision is not installed.

    A corruption with a severity that is missing, or that does not hold the files that the others hold, is left out
    and named in `missing`.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """

    origin: Literal["official"] = "official"
    normalised = True

    def __init__(
        self,
        folder: Path,
        split: Split | None = None,
        *,
        limit: int | None = None,
        size: int | None = None,
    ) -> None:
        self._folder, self._size = folder, size
        self.missing: dict[str, str] = {}
        found: dict[str, list[Listing]] = {}
        same: dict[
            Listing, Listing
        ] = {}  # Equal listings are kept once: the whole set has 3,750,000 files.
        for name in MAIN:
            try:
                listings = [_listing(folder / name / str(severity)) for severity in SEVERITIES]
            except OSError as error:
                self.missing[name] = str(error)
            else:
                found[name] = [same.setdefault(listing, listing) for listing in listings]
        if not found:
            name, reason = next(iter(self.missing.items()))
            raise FileNotFoundError(
                f"{folder}: holds none of the {len(MAIN)} corruptions whole; {name}: {reason}"
            )
        usual = _usual(found)
        for name, listings in found.items():
            wrong = [severity for severity in SEVERITIES if listings[severity - 1] != usual]
            if wrong:
                self.missing[name] = _difference(
                    f"{name}/{wrong[0]}", listings[wrong[0] - 1], usual
                )
        self.names = tuple(name for name in found if name not in self.missing)
        if split is not None:
            limit = len(split)
            _check_labels(folder, usual, split.labels.cpu())
        self.classes = usual.classes
        self._files = usual.files[:limit]
        self.labels: Tensor = torch.tensor([label for _, label in self._files])

    def images(self, name: str, severity: int) -> ImageSequence:
        root = self._folder / name / str(severity)
        return _Photographs([root / file for file, _ in self._files], self._size)


class _Photographs:
    """Images of one corruption and severity, decoded when they are asked for."""

    def __init__(self, files: list[Path], size: int | None) -> None:
        self._files, self._size = files, size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> np.ndarray:
        from PIL import Image, ImageOps

        path = self._files[number]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            # Pillow's own words name the file only sometimes.
            raise ValueError(f"{path}: not a readable image ({error})") from error
        if self._size is not None and image.size != (self._size, self._size):
            image = ImageOps.fit(image, (self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(image)


def _listing(folder: Path) -> Listing:
    """Raises FileNotFoundError for a folder that is missing, has no class, or a class without an image."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.parent.name}/{folder.name}: missing")
    try:
        tree = _torchvision().ImageFolder(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder.parent.name}/{folder.name}: {error}") from error
    files = tuple((str(Path(path).relative_to(folder)), label) for path, label in tree.samples)
    return Listing(tuple(tree.classes), files)


def _torchvision() -> ModuleType:
    try:
        return datasets()
    except ImportError as error:
        raise ImportError(
            f"ImageNet-C is read by torchvision, which cannot be imported ({error}): "
            "pip install 'iaat-fast[train]'"
        ) from error


def _usual(found: dict[str, list[Listing]]) -> Listing:
    """The listing that most severities have; of several, the longest."""
    counts = Counter(listing for listings in found.values() for listing in listings)
    return max(counts, key=lambda listing: (counts[listing], len(listing.files)))


def _difference(place: str, listing: Listing, usual: Listing) -> str:
    absent = set(usual.classes) - set(listing.classes)
    if absent:
        return f"{place}: class {min(absent)} is missing"
    if len(listing.files) != len(usual.files):
        return f"{place}: {len(listing.files)} images, {len(usual.files)} elsewhere"
    strange = min(set(listing.files) - set(usual.files))[0]
    return f"{place}: {strange} is not elsewhere"


def _check_labels(folder: Path, usual: Listing, labels: Tensor) -> None:
    if len(usual.files) < len(labels):
        raise ValueError(
            f"{folder}: has {len(usual.files)} images per severity, the test split has {len(labels)}; "
            f"take no more than are corrupted (--limit {len(usual.files)})"
        )
    own = torch.tensor([label for _, label in usual.files[: len(labels)]])
    different = int((own != labels).sum())
    if different:
        raise ValueError(
            f"{folder}: {different} of {len(labels)} labels are not those of the test split: these "
            "are the corruptions of another data set"
        )
