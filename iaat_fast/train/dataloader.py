"""The training batches of an epoch, augmented: images in memory on their device, image files decoded ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from iaat_fast import ops
from iaat_fast.data import FolderSplit, Samples, Split, UnreadableImage
from iaat_fast.train.distributed import SINGLE, Ranks


@dataclass(frozen=True)
class GlobalBatch:
    """This rank's slice of a batch, and what all ranks know of the whole. `TrainLoader.images` has its images.

    index: sample numbers, int64 [B]. Files that could not be decoded and are to be skipped are missing, so B may be
        smaller than the slice, and 0.
    seed: of the augmentation.
    whole: sample numbers of the global batch, with those of the files that are missing.
    present: images of the global batch, without them.
    decoded: of image files, the images float32 [B, C, H, W] in [0, 1] and their labels int64 [B].
    """

    index: Tensor
    seed: int
    whole: Tensor
    present: int
    decoded: tuple[Tensor, Tensor] | None = None


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
        slices = [self.ranks.shard(whole) for whole in batches]
        if isinstance(self.split, FolderSplit):
            # Closed, which ends the processes that decode: an error would keep them until the end of this one.
            with closing(self.split.batches(slices, seeds, augment=self.augment)) as decoded:
                for whole, seed in zip(batches, seeds, strict=True):
                    x, y, index = self._next_decoded(decoded)
                    yield GlobalBatch(index, seed, whole, self.ranks.sum(len(index)), (x, y))
            return
        for whole, index, seed in zip(batches, slices, seeds, strict=True):
            yield GlobalBatch(index, seed, whole, len(whole))

    def images(self, batch: GlobalBatch) -> tuple[Tensor, Tensor]:
        """The images of a batch, float32 [B, C, H, W] in [0, 1], and their labels, int64 [B]."""
        return self.gathered(batch.index, batch.seed) if batch.decoded is None else batch.decoded

    def gathered(self, index: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of samples in memory, by their numbers int64 [B], augmented by a seed, see `images`.

        With a seed on the device, int64 [1], nothing is read on the host of a GPU.
        """
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
