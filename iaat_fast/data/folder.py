"""Images in a folder per class, as ImageNet comes: listed, numbered, and decoded when they are asked for."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iaat_fast import validate
from iaat_fast.data._torchvision import datasets
from iaat_fast.data.decoding import SIZE, UnreadableImage, decode, prefetch, test_transform
from iaat_fast.data.splits import ImageData, unit_range

logger = logging.getLogger("iaat_fast")

ON_BAD_IMAGE = ("stop", "skip")
# Test images of at most this many bytes are kept decoded: 14,000 of 224 x 224. ImageNet's 50,000 would take 7 GiB.
CACHED_BYTES = 2 * 2**30
MAX_WORKERS = 16

JFIF = ".jfif"
"""An ending of JPEG files that torchvision does not list."""


def list_images(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """The class folders of `root`, sorted, and their images as (path below `root`, class number), by class and path.

    Files are listed as torchvision's ImageFolder lists them, those in subfolders of a class included, except names that
    start with a dot (`.ipynb_checkpoints`, for instance, is no class). Files left out, because of their endings or
    because they lie outside the class folders, are counted in one logged line.

    Raises:
        FileNotFoundError: no class folder, or one that holds no image; the message names it.
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


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Image files with their labels, see `Samples`.

    Samples are numbered through the classes in turn: the first image of each class, the second of each, and so on. So
    the first N samples are spread over the classes, and a sample's number does not depend on how many are taken.

    Args:
        root: folder of the class folders.
        files: paths below `root`, as a numpy array of bytes, which worker processes share without copying.
        labels: int64 [N], class numbers.
        workers: processes that decode training batches, and threads that decode others; at least 0.
        on_bad_image: at a file that cannot be decoded: "stop", raise; "skip", leave it out.
        pixels: uint8 [N, 3, SIZE, SIZE] on the CPU, all images after `test_transform`, if they are kept decoded.
    """

    root: Path
    files: np.ndarray
    labels: torch.Tensor
    workers: int
    on_bad_image: str = "stop"
    pixels: torch.Tensor | None = None

    channels = 3

    def __len__(self) -> int:
        return len(self.files)

    def path(self, number: int) -> Path:
        """The file of a sample."""
        return self.root / os.fsdecode(self.files[number])

    def to(self, device: torch.device | str) -> FolderSplit:
        """The same samples, fetched to `device`."""
        return self._with(self.files, self.labels.to(device), self.pixels)

    def first(self, n: int) -> FolderSplit:
        """The first `n` samples, all of them where there are fewer."""
        validate.integer("n", n, 1)
        return self._with(
            self.files[:n], self.labels[:n], None if self.pixels is None else self.pixels[:n]
        )

    def identity(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The files' names, the labels, and the pixels if they are kept decoded."""
        names = np.frombuffer(b"\n".join(self.files.tolist()), dtype=np.uint8)
        yield "files", torch.from_numpy(names.copy())
        yield "labels", self.labels
        if self.pixels is not None:
            yield "pixels", self.pixels

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """The images of `index` after `test_transform`, see `Samples.gather`.

        Raises:
            UnreadableImage: a file cannot be decoded; the message names it.
        """
        numbers = index.cpu()
        if self.pixels is not None:
            pixels = self.pixels.index_select(0, numbers)
        else:
            pixels = torch.empty(len(numbers), 3, SIZE, SIZE, dtype=torch.uint8)
            for row, decoded in enumerate(self._decoded(numbers)):
                if isinstance(decoded, UnreadableImage):
                    raise decoded
                pixels[row] = decoded
        return unit_range(pixels.to(self.labels.device))

    def batches(
        self, batches: Sequence[torch.Tensor], seeds: Sequence[int], *, augment: bool
    ) -> Generator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Training batches in the order given, decoded ahead by worker processes.

        Args:
            batches: sample numbers, int64 [B] each.
            seeds: of the augmentation of each batch; what is drawn for a sample depends on the seed and its number.
            augment: random resized crop and flip, or else `test_transform`.

        Yields:
            x float32 [B, 3, 224, 224] in [0, 1], y int64 [B] and the sample numbers int64 [B], on the device of the
            labels; of fewer samples where on_bad_image is "skip" and files could not be decoded.

        Raises:
            UnreadableImage: a file cannot be decoded and on_bad_image is "stop"; the message names it.
            ChildProcessError: a worker process has died.
        """
        device, known = self.labels.device, set[str]()
        for pixels, numbers, problems in prefetch(
            self.root, self.files, batches, seeds, augment=augment, workers=self.workers, to=device
        ):
            for problem in problems:
                if self.on_bad_image == "stop":
                    raise UnreadableImage(problem)
                if problem not in known:
                    logger.warning("left out: %s", problem)
                known.add(problem)
            index = numbers.to(device, non_blocking=True)
            x = unit_range(pixels.to(device, non_blocking=True))
            yield x, self.labels.index_select(0, index), index

    def checked(self) -> FolderSplit:
        """The same samples without those that cannot be decoded; all are tried, and kept decoded up to `CACHED_BYTES`.

        For test images, of which an evaluation needs every one: a bad file is found before any work is done.

        Raises:
            UnreadableImage: a file cannot be decoded and on_bad_image is "stop"; the message names it.
            ValueError: no file can be decoded.
        """
        keep = len(self) * 3 * SIZE * SIZE <= CACHED_BYTES
        readable, pixels = [], []
        for number, decoded in enumerate(self._decoded(torch.arange(len(self)))):
            if isinstance(decoded, UnreadableImage):
                if self.on_bad_image == "stop":
                    raise decoded
                logger.warning("left out: %s", decoded)
                continue
            readable.append(number)
            if keep:
                pixels.append(decoded)
        if not readable:
            raise ValueError(f"{self.root}: none of its {len(self)} images can be decoded")
        rows = torch.tensor(readable)
        kept = torch.stack(pixels) if keep else None
        return self._with(self.files[readable], self.labels[rows.to(self.labels.device)], kept)

    def _decoded(self, numbers: torch.Tensor) -> Iterator[torch.Tensor | UnreadableImage]:
        """Images after `test_transform`, in order, by threads: PIL releases the GIL while it decodes and resizes."""

        def one(number: int) -> torch.Tensor | UnreadableImage:
            try:
                return decode(self.path(number), test_transform())
            except UnreadableImage as error:
                return error

        threads = max(self.workers, 1)
        with ThreadPoolExecutor(threads) as pool:
            # In parts: a pool decodes all that it is given, even if its results are taken more slowly.
            for part in numbers.split(4 * threads):
                yield from pool.map(one, part.tolist())

    def _with(
        self, files: np.ndarray, labels: torch.Tensor, pixels: torch.Tensor | None
    ) -> FolderSplit:
        return FolderSplit(self.root, files, labels, self.workers, self.on_bad_image, pixels)


def load_folder(
    folder: Path,
    name: str,
    *,
    limit: int | None,
    workers: int | None,
    on_bad_image: str,
) -> ImageData:
    """`folder` with train/CLASS/IMAGE and val/CLASS/IMAGE as the data set `name`.

    Args:
        folder, name, limit, workers, on_bad_image: see `data.load`.

    Raises:
        FileNotFoundError: train/ or val/ is missing or has no class folder, or a class folder holds no image.
        ValueError: other classes in train/ than in val/, or a test image that cannot be decoded.
    """
    workers = _workers() if workers is None else workers
    splits, classes = {}, {}
    for part in ("train", "val"):
        root = folder / part
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: missing, expected {folder} to hold train/ and val/")
        files, labels, classes[part] = _listed(root)
        splits[part] = FolderSplit(root, files, labels, workers, on_bad_image)
    for part, other in (("train", "val"), ("val", "train")):
        alone = sorted(set(classes[part]) - set(classes[other]))
        if alone:
            shown = ", ".join(alone[:3]) + (f" and {len(alone) - 3} more" if len(alone) > 3 else "")
            raise ValueError(
                f"{folder}: {part}/ has class folders that {other}/ lacks ({shown}), expected the same in both"
            )
    train, test = splits["train"], splits["val"]
    if limit is not None:
        train, test = train.first(limit), test.first(limit)
    return ImageData(name, train, test.checked(), len(classes["train"]))


def _listed(root: Path) -> tuple[np.ndarray, torch.Tensor, list[str]]:
    """Files and labels in the order of the sample numbers, and the class folders."""
    classes, listed = list_images(root)
    labels = np.array([label for _, label in listed], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    # The listing is sorted by class: an image's place in its class is its distance to the first of the class.
    within = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels]
    order = np.lexsort((labels, within))
    below = [os.fsencode(file) for file, _ in listed]
    return np.array(below)[order], torch.from_numpy(labels[order]), classes


def _workers() -> int:
    """The default: the cores that this process may use, divided among torchrun's processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MAX_WORKERS, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
