"""Image files in a folder per class: which count as images, in which order, and how many do not."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from iaat_fast.data._torchvision import datasets

logger = logging.getLogger("iaat_fast")

JFIF = ".jfif"
"""JPEG by another name, which torchvision does not list."""


def list_images(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """The class folders of `root`, sorted, and their images as (path below `root`, class number), by class and path.

    Files are listed as torchvision's ImageFolder lists them, folders within a class included, but nothing whose name
    begins with a dot: `.ipynb_checkpoints` is no class, and the copies in it no images. Files that are left out for
    their endings, or lie outside the class folders, are counted in one logged line.

    Raises:
        FileNotFoundError: no class folder, or one that holds no image, named.
    """
    endings: tuple[str, ...] = (*datasets().folder.IMG_EXTENSIONS, JFIF)
    with os.scandir(root) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in shown if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"{root}: holds no class folder, expected CLASS/IMAGE in it")
    prefix = os.path.join(root, "")
    left_out: Counter[tuple[str, str]] = Counter()

    def is_image(path: str) -> bool:
        below = path.removeprefix(prefix)
        if f"{os.sep}." in below:
            return False
        if below.lower().endswith(endings):
            return True
        left_out[below.partition(os.sep)[0], _ending(below)] += 1
        return False

    numbers = {name: number for number, name in enumerate(classes)}
    samples = datasets().folder.make_dataset(
        str(root), numbers, is_valid_file=is_image, allow_empty=True
    )
    filled = {label for _, label in samples}
    for name, number in numbers.items():
        if number not in filled:
            got = _counted(Counter({end: n for (own, end), n in left_out.items() if own == name}))
            raise FileNotFoundError(
                f"{root / name}: holds no image, expected files ({', '.join(endings)}), got {got or 'none'}"
            )
    kinds: Counter[str] = Counter()
    for (_, ending), count in left_out.items():
        kinds[ending] += count
    for entry in shown:
        if not entry.is_dir() and entry.name.lower().endswith(endings):
            kinds[f"{_ending(entry.name)} in no class folder"] += 1
    if kinds:
        logger.warning(
            "%s: %d of its files left out (%s), expected CLASS/IMAGE with %s",
            root,
            kinds.total(),
            _counted(kinds),
            ", ".join(endings),
        )
    return classes, [(path.removeprefix(prefix), label) for path, label in samples]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
