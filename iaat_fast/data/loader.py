"""`prefetch`: batches of image files decoded ahead of their use by worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from iaat_fast.data.decoding import (
    SIZE,
    UnreadableImage,
    decode,
    decode_augmented,
    test_transform,
)

Decoded = tuple[torch.Tensor, torch.Tensor, list[str]]


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
        augment: the training view of each image, or the test view.
        workers: processes; 0 decodes in this one.
        to: the device the batches will go to.

    Yields:
        Pixels uint8 [B, 3, 224, 224] and sample numbers int64 [B] of the files that could be decoded, on the CPU, and
        what was wrong with the others.

    Raises:
        ChildProcessError: a worker has died, of lack of memory for example.
    """
    loader = DataLoader(
        _Files(root, files, augment),
        batch_sampler=_Keys(batches, seeds),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_signals,
        pin_memory=to.type == "cuda",
        # Its own: a draw from torch's would depend on where in the epoch the run was resumed.
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
    """The keys of each batch: (sample number, seed)."""

    def __init__(self, batches: Sequence[torch.Tensor], seeds: Sequence[int]) -> None:
        self.batches, self.seeds = batches, seeds

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for numbers, seed in zip(self.batches, self.seeds, strict=True):
            yield [(number, seed) for number in numbers.tolist()]


class _Files(Dataset[tuple[int, "torch.Tensor | str"]]):
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
    """Ctrl-C and SIGTERM reach a whole group of processes; the training process ends its workers when it is done."""

    def first(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not for ever: with it, torch ends workers that do not answer.
    signal.signal(signal.SIGTERM, first)
