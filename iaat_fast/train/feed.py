"""The training batches of an epoch, augmented: images in memory on their device, image files decoded ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from iaat_fast import ops
from iaat_fast.data import FolderSplit, Samples, Split, UnreadableImage, fetch
from iaat_fast.train.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Fed:
    """This rank's slice of a batch, and what all ranks know of the whole.

    x: float32 [B, C, H, W] in [0, 1].
    y: int64 [B].
    index: sample numbers, int64 [B]. Files that could not be decoded and are to be skipped are missing, so B may be
        smaller than the slice, and 0.
    whole: sample numbers of the global batch, with those of the files that are missing.
    present: images of the global batch, without them.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    whole: Tensor
    present: int


class Feed:
    """Batches of a split.

    Args:
        split: the training images.
        augment: reflect-pad by 4, random crop and flip; of image files, random resized crop and flip.
        ranks: those that each batch is spread over.
    """

    def __init__(self, split: Samples, *, augment: bool, ranks: Ranks = ALONE) -> None:
        self.split, self.augment, self.ranks = split, augment, ranks
        self._images: Tensor | None = None
        if augment and isinstance(split, Split):
            self._images = split.images.contiguous()  # as the op that augments wants them

    def __call__(self, batches: Sequence[Tensor], seeds: Sequence[int]) -> Generator[Fed]:
        """Make batches, one after the other, when they are asked for; close it when done.

        Args:
            batches: sample numbers of the global batches, int64 each, on the split's device.
            seeds: of the augmentation of each batch; its draws follow the sample's number.

        Raises:
            UnreadableImage: a file that cannot be decoded, named, where it is not to be skipped; on every rank.
            OSError: a process that decodes has died; on every rank.
        """
        slices = [self.ranks.mine(whole) for whole in batches]
        if isinstance(self.split, FolderSplit):
            # Closed, which ends the processes that decode: an error would keep them until the end of this one.
            with closing(self.split.batches(slices, seeds, augment=self.augment)) as decoded:
                for whole in batches:
                    x, y, index = self._together(decoded)
                    yield Fed(x, y, index, whole, self.ranks.sum(len(index)))
            return
        for whole, index, seed in zip(batches, slices, seeds, strict=True):
            if self._images is None:
                x, y = fetch(self.split, index)
            else:
                x = ops.random_crop_flip(self._images, index, seed)
                y = self.split.labels[index]
            yield Fed(x, y, index, whole, len(whole))

    def _together(
        self, decoded: Iterator[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return self.ranks.together(partial(next, decoded))
        except ValueError as error:  # The others have it from the rank that found it.
            raise UnreadableImage(str(error)) from error
