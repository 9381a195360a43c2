"""The augmented training batches of an epoch: from images in memory, or from image files, which are decoded ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Self

from torch import Tensor

from iaat_fast import ops
from iaat_fast.data import FolderSplit, Samples, Split, UnreadableImage
from iaat_fast.train.distributed import SINGLE, Ranks


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """A rank's shard of a global batch, and what all ranks know about the global batch.

    Attributes:
        index: int64 [B], sample numbers of the shard, without files that could not be decoded and are skipped; so B may
            be smaller than the shard, even 0.
        whole: int64, sample numbers of the global batch, skipped files included.
        present: number of images of the global batch, without skipped files.
        decoded: for image files: images float32 [B, C, H, W] in [0, 1] and labels int64 [B]; None where `loader`
            gathers them from memory.
        seed: of the augmentation of images in memory; in a captured step int64 [1] on the device.
        loader: for images in memory.
    """

    index: Tensor
    whole: Tensor
    present: int
    decoded: tuple[Tensor, Tensor] | None = None
    seed: int | Tensor = 0
    loader: TrainLoader | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor, index: Tensor) -> Self:
        """A global batch of the given images, on one rank."""
        return cls(index=index, whole=index, present=len(index), decoded=(x, y))

    def images(self) -> tuple[Tensor, Tensor]:
        """The shard's images, augmented, float32 [B, C, H, W] in [0, 1], and their labels, int64 [B].

        With a seed on the device, the host does not wait for a GPU.
        """
        if self.decoded is not None:
            return self.decoded
        assert self.loader is not None
        return self.loader.gathered(self.index, self.seed)


class TrainLoader:
    """The training batches of a split.

    Args:
        split: the training images.
        augment: reflect-pad by 4, random crop and flip; of image files, random resized crop and flip.
        ranks: among which each batch is divided.
    """

    def __init__(self, split: Samples, *, augment: bool, ranks: Ranks = SINGLE) -> None:
        self.split, self.augment, self.ranks = split, augment, ranks
        self._images: Tensor | None = None
        if augment and isinstance(split, Split):
            self._images = split.images.contiguous()  # as the op that augments wants them

    def __call__(self, batches: Sequence[Tensor], seeds: Sequence[int]) -> Generator[GlobalBatch]:
        """The batches in order, image files decoded ahead; close the generator when done.

        Args:
            batches: sample numbers of the global batches, int64 each, on the split's device.
            seeds: of the augmentation of each batch; what is drawn for a sample depends on the seed and its number.

        Raises:
            UnreadableImage: a file cannot be decoded and is not to be skipped; raised on every rank, with its name.
            OSError: a decoding process has died; raised on every rank.
        """
        shards = [self.ranks.shard(whole) for whole in batches]
        if isinstance(self.split, FolderSplit):
            # Closing it ends the decoding processes, which after an error would live as long as this one.
            with closing(self.split.batches(shards, seeds, augment=self.augment)) as decoded:
                for whole in batches:
                    x, y, index = self._next_decoded(decoded)
                    present = self.ranks.sum(len(index))
                    yield GlobalBatch(index=index, whole=whole, present=present, decoded=(x, y))
            return
        for whole, index, seed in zip(batches, shards, seeds, strict=True):
            yield GlobalBatch(index=index, whole=whole, present=len(whole), seed=seed, loader=self)

    def gathered(self, index: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor]:
        """Images, augmented with this seed, and labels of samples in memory, by their numbers int64 [B]."""
        labels = self.split.labels.index_select(0, index)
        if self._images is None:
            return self.split.gather(index), labels
        return ops.random_crop_flip(self._images, index, seed), labels

    def _next_decoded(
        self, decoded: Iterator[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return self.ranks.run_on_all(partial(next, decoded))
        except ValueError as error:  # `run_on_all` raises a plain ValueError on the other ranks.
            raise UnreadableImage(str(error)) from error
