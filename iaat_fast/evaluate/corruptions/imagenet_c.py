"""ImageNet-C as published: a tree <corruption>/<severity>/<wnid>/*.JPEG."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iaat_fast.data import Samples
from iaat_fast.data.decoding import read_rgb
from iaat_fast.data.folder import list_images
from iaat_fast.evaluate.corruptions.base import MAIN, SEVERITIES, ImageSequence


class Listing(NamedTuple):
    """The content of one severity of a corruption: its classes, sorted, and its files with their class numbers."""

    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]


class ImageNetC:
    """The published JPEGs of ImageNet-C, decoded as they are needed.

    Classes are numbered by their sorted wnids (ImageNet's class folders), see `list_images`. Images keep their size,
    224x224, unless `size` is given.

    Args:
        folder: holds `<corruption>/<severity>/<wnid>/*.JPEG`.
        split: the clean images. If it has `files` (<wnid>/<name>), the corrupted images of the same names are taken,
            in its order; else the first len(split), by class and name. The labels must agree in both cases.
        limit: without a split, the number of images of each severity, taken from the classes in turn (the first image
            of each, the second of each, ...); None: all, by class and name.
        size: height and width that the model takes; other images are cropped to a square and resized, bilinearly.

    Raises:
        FileNotFoundError: no corruption is complete.
        ValueError: the labels are not those of `split`, or an image of it is not there.

    A corruption that lacks a severity, or has other files than the rest, is left out and named in `missing`.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261.
    """

    origin: Literal["official"] = "official"
    normalised = True

    def __init__(
        self,
        folder: Path,
        split: Samples | None = None,
        *,
        limit: int | None = None,
        size: int | None = None,
    ) -> None:
        self._folder, self._size = folder, size
        self.missing: dict[str, str] = {}
        found: dict[str, list[Listing]] = {}
        # Equal listings are kept once: the whole set has 3,750,000 files.
        same: dict[Listing, Listing] = {}
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
        self.classes = usual.classes
        if split is not None:
            self._files = _counterparts(folder, usual, split)
        else:
            self._files = usual.files if limit is None else _in_turn(usual.files)[:limit]
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

        image = read_rgb(self._files[number])
        if self._size is not None and image.size != (self._size, self._size):
            image = ImageOps.fit(image, (self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(image)


def _listing(folder: Path) -> Listing:
    """Raises FileNotFoundError for a folder that is missing, has no class, or a class without an image."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.parent.name}/{folder.name}: missing")
    try:
        classes, files = list_images(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder.parent.name}/{folder.name}: {error}") from error
    return Listing(tuple(classes), tuple(files))


def _usual(found: dict[str, list[Listing]]) -> Listing:
    """The listing that most severities have; if several are equally common, the longest."""
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


def _in_turn(files: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The first image of each class, the second of each, and so on."""
    seen: Counter[int] = Counter()
    places = []
    for _, label in files:
        places.append((seen[label], label))
        seen[label] += 1
    order = sorted(range(len(files)), key=places.__getitem__)
    return tuple(files[number] for number in order)


def _counterparts(folder: Path, usual: Listing, split: Samples) -> tuple[tuple[str, int], ...]:
    """The files of the corrupted images of `split`, in its order, with their labels."""
    names = getattr(split, "files", None)
    if len(usual.files) < len(split):
        raise ValueError(
            f"{folder}: has {len(usual.files)} images per severity, the test split has {len(split)}; "
            f"take no more than are corrupted (--limit {len(usual.files)})"
        )
    if names is None:
        files = usual.files[: len(split)]
    else:
        label_of = dict(usual.files)
        wanted = [os.fsdecode(name) for name in names]
        absent = [name for name in wanted if name not in label_of]
        if absent:
            raise ValueError(
                f"{folder}: {len(absent)} of {len(wanted)} test images are not there, for example {absent[0]}"
            )
        files = tuple((name, label_of[name]) for name in wanted)
    different = int((torch.tensor([label for _, label in files]) != split.labels.cpu()).sum())
    if different:
        raise ValueError(
            f"{folder}: {different} of {len(split)} labels are not those of the test split: these "
            "are the corruptions of another data set"
        )
    return files
