"""Decoding image files to pixels, for training and for evaluation: one by one, or ahead of use by worker processes."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from iaat_fast.data._torchvision import torchvision

SIZE = 224
"""Height and width of the images that the network sees."""
RESIZED = 256
"""Shorter side from which the centre is cropped."""

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
"""PIL's modes with at most 8 bits per channel, which PIL itself converts to RGB."""
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

Decoded = tuple[torch.Tensor, torch.Tensor, list[str]]


class UnreadableImage(ValueError):
    """An image file that cannot be decoded; the message names it and says why."""


@functools.cache
def training_transform() -> Any:
    """PIL image to uint8 [3, SIZE, SIZE]: a random crop of 8 to 100 % of the area, resized, and a random flip."""
    v2 = torchvision("transforms.v2")
    return v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()])


@functools.cache
def test_transform() -> Any:
    """PIL image to uint8 [3, SIZE, SIZE]: the centre of the image resized to `RESIZED`."""
    v2 = torchvision("transforms.v2")
    return v2.Compose([v2.Resize(RESIZED), v2.CenterCrop(SIZE), v2.PILToTensor()])


def decode(path: Path, transform: Any) -> torch.Tensor:
    """The RGB image in `path`, see `read_rgb`, transformed. Raises UnreadableImage."""
    pixels: torch.Tensor = transform(read_rgb(path))
    return pixels


def read_rgb(path: Path) -> Any:
    """The image in `path` as a PIL image of mode RGB, 8 bits per channel.

    Of 16 bits the upper 8 are taken, as PIL does for colour images of 16 bits. Alpha, an orientation in the EXIF data
    and all frames but the first are ignored, as torchvision's ImageFolder ignores them.

    Raises:
        UnreadableImage: the file is missing, cut short or no image, or its pixels are of an unknown range.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as file:
            image = Image.open(file)
            image.load()
            if image.mode in EIGHT_BITS:
                return image.convert("RGB")
            if _is_sixteen_bits(image):
                high = np.asarray(image).astype(np.int32) >> 8
                return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"{path}: not a readable image (of no format that PIL knows)"
        ) from error
    # Damaged bytes may raise anything in a decoder.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{path}: not a readable image ({reason})") from error
    raise UnreadableImage(
        f"{path}: {image.format} with pixels of PIL's mode {image.mode}, expected 8 or 16 bits per channel: nothing "
        "says which values are black and white"
    )


def _is_sixteen_bits(image: Any) -> bool:
    """Whether the pixels are grey, 0 for black and 65535 for white."""
    if image.format == "TIFF":
        # PIL hands out 12 bits as they are, and does not invert where 0 is white.
        bits, photometric = image.tag_v2.get(258), image.tag_v2.get(262)
        return image.mode in SIXTEEN_BITS and bits == (16,) and photometric == 1
    # PIL gives PNM files of 16 bits, and PNG files before version 11, as 32-bit integers.
    return image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))


def decode_augmented(path: Path, *, seed: int, number: int) -> torch.Tensor:
    """`decode` for training; the random crop and flip depend on the seed and the sample's number alone."""
    key = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
    # The transforms draw from torch's generator, whose state belongs to the model (dropout) and is restored. It is not
    # seeded by torch.manual_seed, which would seed the GPUs' generators too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        return decode(path, training_transform())


def prefetch(
    root: Path,
    files: np.ndarray,
    batches: Sequence[torch.Tensor],
    seeds: Sequence[int],
    *,
    augment: bool,
    workers: int,
    to: torch.device,
) -> Iterator[Decoded]:
    """Decode batches in their order.

    Args:
        root, files: see `FolderSplit`.
        batches: sample numbers, int64 [B] each.
        seeds: of the augmentation of each batch.
        augment: whether to apply `training_transform`, or else `test_transform`.
        workers: processes; 0 decodes in this one.
        to: the device the batches will go to.

    Yields:
        Pixels uint8 [B, 3, 224, 224] and sample numbers int64 [B] of the files that could be decoded, on the CPU, and
        what is wrong with the others, a message each.

    Raises:
        ChildProcessError: a worker has died, for lack of memory for example.
    """
    loader = DataLoader(
        _Files(root, files, augment),
        batch_sampler=_Keys(batches, seeds),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_signals,
        pin_memory=to.type == "cuda",
        # Of its own: an iteration draws from it once, and a resumed run has one iteration more.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that decodes images has died, expected it to live ({error}); "
            "was there too little memory? Try fewer of them (--workers)"
        ) from error


class _Keys:
    """Batch sampler of `_Files`: the keys (sample number, seed) of each batch."""

    def __init__(self, batches: Sequence[torch.Tensor], seeds: Sequence[int]) -> None:
        self.batches, self.seeds = batches, seeds

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for numbers, seed in zip(self.batches, self.seeds, strict=True):
            yield [(number, seed) for number in numbers.tolist()]


class _Files(Dataset[tuple[int, "torch.Tensor | str"]]):
    """Samples by key: the number, and the pixels or what is wrong with the file."""

    def __init__(self, root: Path, files: np.ndarray, augment: bool) -> None:
        self.root, self.files, self.augment = root, files, augment

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, torch.Tensor | str]:
        number, seed = key
        path = self.root / os.fsdecode(self.files[number])
        try:
            if self.augment:
                return number, decode_augmented(path, seed=seed, number=number)
            return number, decode(path, test_transform())
        except UnreadableImage as error:
            return number, str(error)


def _collate(samples: list[tuple[int, torch.Tensor | str]]) -> Decoded:
    images = [(n, image) for n, image in samples if isinstance(image, torch.Tensor)]
    pixels = (
        torch.stack([image for _, image in images])
        if images
        else torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8)
    )
    problems = [image for _, image in samples if isinstance(image, str)]
    return pixels, torch.tensor([n for n, _ in images], dtype=torch.int64), problems


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C and the first SIGTERM, which reach all processes; the training process ends its workers itself."""

    def first(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Only the first: by a SIGTERM torch ends workers that do not answer.
    signal.signal(signal.SIGTERM, first)
