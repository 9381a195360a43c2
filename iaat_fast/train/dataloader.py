"""The training batches of an epoch, augmented: images in memory on their device, image files decoded ahead."""

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
    """A rank's shard of a global batch, and what all ranks know of the whole.

    Attributes:
        index: int64 [B], sample numbers of the shard. Files that could not be decoded and are to be skipped are
            missing, so B may be smaller than the shard, and 0.
        whole: int64, sample numbers of the global batch, with those of the files that are missing.
        present: images of the global batch, without them.
        decoded: the images float32 [B, C, H, W] in [0, 1] and their labels int64 [B], of image files; None where
            `loader` gathers them from memory.
        seed: of the augmentation of images in memory; on the device, int64 [1], in a captured step.
        loader: of images in memory.
    """

    index: Tensor
    whole: Tensor
    present: int
    decoded: tuple[Tensor, Tensor] | None = None
    seed: int | Tensor = 0
    loader: TrainLoader | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor, index: Tensor) -> Self:
        """A global batch of images at hand, on one rank."""
        return cls(index=index, whole=index, present=len(index), decoded=(x, y))

    def images(self) -> tuple[Tensor, Tensor]:
        """The shard's images, augmented, float32 [B, C, H, W] in [0, 1], and their labels, int64 [B].

        With a seed on the device nothing is read on the host of a GPU.
        """
        if self.decoded is not None:
            return self.decoded
        assert self.loader is not None
        return self.loader.gathered(self.index, self.seed)


class TrainLoader:
    """Batches of a split.

    Args:
        split: the training images.
        augment: reflect-pad by 4, random crop and flip; of image files, random resized crop and flip.
        ranks: those that each batch is spread over.
    """

    def __init__(self, split: Samples, *, augment: bool, ranks: Ranks = SINGLE) -> None:
        self.split, self.augment, self.ranks = split, augment, ranks
        self._images: Tensor | None = None
        if augment and isinstance(split, Split):
            self._images = split.images.contiguous()  # as the op that augments wants them

    def __call__(self, batches: Sequence[Tensor], seeds: Sequence[int]) -> Generator[GlobalBatch]:
        """Batches, one after the other, decoded ahead where they are files; close it when done.

        Args:
            batches: sample numbers of the global batches, int64 each, on the split's device.
            seeds: of the augmentation of each batch; its draws follow the sample's number.

        Raises:
            UnreadableImage: a file that cannot be decoded, named, where it is not to be skipped; on every rank.
            OSError: a process that decodes has died; on every rank.
        """
        shards = [self.ranks.shard(whole) for whole in batches]
        if isinstance(self.split, FolderSplit):
            # Closed, which ends the processes that decode: an error would keep them until the end of this one.
            with closing(self.split.batches(shards, seeds, augment=self.augment)) as decoded:
                for whole in batches:
                    x, y, index = self._next_decoded(decoded)
                    present = self.ranks.sum(len(index))
                    yield GlobalBatch(index=index, whole=whole, present=present, decoded=(x, y))
            return
        for whole, index, seed in zip(batches, shards, seeds, strict=True):
            yield GlobalBatch(index=index, whole=whole, present=len(whole), seed=seed, loader=self)

    def gathered(self, index: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of samples in memory, by their numbers int64 [B], augmented by a seed."""
        labels = self.split.labels.index_select(0, index)
        if self._images is None:
            return self.split.gather(index), labels
        return ops.random_crop_flip(self._images, index, seed), labels

    def _next_decoded(
        self, decoded: Iterator[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return self.ranks.run_on_all(partial(next, decoded))
        except ValueError as error:  # The others have it from the rank that found it.
            raise UnreadableImage(str(error)) from error
