"""The training batches of an epoch, augmented: images in memory on their device, image files decoded ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from iaat_fast import ops
from iaat_fast.data import FolderSplit, Samples, Split, fetch


class Feed:
    """Batches of a split.

    Args:
        split: the training images.
        augment: reflect-pad by 4, random crop and flip; of image files, random resized crop and flip.
    """

    def __init__(self, split: Samples, *, augment: bool) -> None:
        self.split, self.augment = split, augment
        self._images: Tensor | None = None
        if augment and isinstance(split, Split):
            self._images = split.images.contiguous()  # as the op that augments wants them

    def __call__(
        self, batches: Sequence[Tensor], seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Make batches, one after the other, when they are asked for.

        Args:
            batches: sample numbers, int64 [B] each, on the split's device.
            seeds: of the augmentation of each batch; its draws follow the sample's number.

        Yields:
            x float32 [B, C, H, W] in [0, 1], y int64 [B] and the sample numbers int64 [B]. Files that cannot be
            decoded and are to be skipped are missing from all three, so B may be smaller, and 0.

        Raises:
            UnreadableImage: a file that cannot be decoded, named, where it is not to be skipped.
            ChildProcessError: a process that decodes has died.
        """
        if isinstance(self.split, FolderSplit):
            yield from self.split.batches(batches, seeds, augment=self.augment)
            return
        for index, seed in zip(batches, seeds, strict=True):
            if self._images is None:
                yield *fetch(self.split, index), index
            else:
                x = ops.random_crop_flip(self._images, index, seed)
                yield x, self.split.labels[index], index
