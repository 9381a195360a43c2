"""`DatasetSplit`: a torch Dataset, or that of a DataLoader, as samples that are read batch by batch, by number."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from iaat_fast import validate
from iaat_fast.data.arrays import as_labels, as_tensor, check_images, float_batch

_LABELS_AT_ONCE = 256
_CHECKED = 8  # samples that are read twice at the start, to see whether they stay the same

Batch = tuple[torch.Tensor, torch.Tensor]


class DatasetSplit:
    """A map-style Dataset of (image, int) as samples; sample i is its item i.

    Labels are read once: from the `targets` of torchvision's data sets, else item by item. Each batch is read when it
    is needed, by the workers of the DataLoader if it has some, and its labels must be those read at first.

    Args:
        source: the Dataset, or the DataLoader with its workers and collate function.
        device: of the batches.

    Raises:
        TypeError, ValueError: see `as_samples`.
    """

    def __init__(self, source: Any, device: torch.device | str) -> None:
        if not isinstance(source, DataLoader):
            if isinstance(source, (IterableDataset, Mapping)) or not (
                hasattr(source, "__getitem__") and hasattr(source, "__len__")
            ):
                raise TypeError(
                    f"data: {type(source).__name__}, expected (x, y), a Dataset with __getitem__ and __len__, a "
                    "DataLoader, or a split of this library: verdicts are kept by sample number"
                )
        else:
            refuse_other_orders(source)
        dataset: Any = source.dataset if isinstance(source, DataLoader) else source
        if not len(dataset):
            raise ValueError("data: no samples, expected at least 1")
        self._batches = _Batches(dataset, source if isinstance(source, DataLoader) else None)
        some = list(range(min(len(dataset), _CHECKED)))
        images, labels = self._batches.at(some)
        again, labels_again = self._batches.at(some)
        if not (torch.equal(images, again) and torch.equal(labels, labels_again)):
            raise ValueError(
                "data: a sample asked for twice is not the same, expected one without augmentation: verdicts are those "
                "of one image"
            )
        self.channels = images.shape[3] if images.dtype == torch.uint8 else images.shape[1]
        self.labels = self._read_labels(dataset, labels).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> DatasetSplit:
        """The same samples, of which batches go to `device`."""
        return self._with(self.labels.to(device))

    def first(self, n: int) -> DatasetSplit:
        """The first `n` samples, all of them where there are fewer."""
        validate.integer("n", n, 1)
        return self._with(self.labels[:n])

    def identity(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The labels, and all images in turn."""
        yield "labels", self.labels
        for numbers in torch.arange(len(self)).split(_LABELS_AT_ONCE):
            yield "images", self.pixels(numbers)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """See `Samples.gather`."""
        return float_batch(self.pixels(index), self.labels.device)

    def pixels(self, index: torch.Tensor) -> torch.Tensor:
        """The images of `index`, int64 [B], in the form of the Dataset's images, see `as_samples`."""
        if not len(index):
            images, _ = self._batches.at([0])
            return images[:0]
        numbers = index.tolist()
        images, labels = self._batches.at(numbers)
        expected = self.labels.index_select(0, index.to(self.labels.device)).cpu()
        if not torch.equal(labels, expected):
            row = int((labels != expected).nonzero()[0])
            raise ValueError(
                f"data: sample {numbers[row]} has label {int(labels[row])}, expected {int(expected[row])}, "
                "which it had at first"
            )
        return images

    def _with(self, labels: torch.Tensor) -> DatasetSplit:
        twin = copy.copy(self)
        twin.labels = labels
        return twin

    def _read_labels(self, dataset: Any, first: torch.Tensor) -> torch.Tensor:
        noted = _noted_labels(dataset)
        if noted is not None and torch.equal(noted[: len(first)], first):
            return noted
        numbers = torch.arange(len(dataset)).split(_LABELS_AT_ONCE)
        return torch.cat([self._batches.at(some.tolist())[1] for some in numbers])


class _Batches:
    """Batches of a Dataset by sample numbers, made as a DataLoader makes them.

    Its workers live as long as this does.
    """

    def __init__(self, dataset: Any, loader: DataLoader[Any] | None) -> None:
        self._numbers = _Numbers()
        self._workers = 0 if loader is None else loader.num_workers
        own = loader is not None and loader.collate_fn is not default_collate
        options: dict[str, Any] = {}
        if loader is not None and self._workers:
            options = {
                "num_workers": self._workers,
                "persistent_workers": True,
                "worker_init_fn": loader.worker_init_fn,
                "multiprocessing_context": loader.multiprocessing_context,
                "timeout": loader.timeout,
            }
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._numbers,
            collate_fn=loader.collate_fn if own and loader is not None else collate,
            # Its own, so that asking for a batch draws nothing from the caller's.
            generator=torch.Generator(),
            **options,
        )

    def at(self, numbers: list[int]) -> Batch:
        """Images and labels of these samples, as a Dataset of either form has them, on the CPU."""
        size = -(-len(numbers) // max(self._workers, 1))
        self._numbers.parts = [numbers[k : k + size] for k in range(0, len(numbers), size)]
        parts = [_as_batch(batch) for batch in self._loader]
        images = torch.cat([images for images, _ in parts]) if len(parts) > 1 else parts[0][0]
        labels = torch.cat([labels for _, labels in parts])
        if len(images) != len(numbers):
            raise ValueError(
                f"data: its collate_fn made {len(images)} images of {len(numbers)} samples, expected one of each"
            )
        return images, labels


class _Numbers(Sampler[list[int]]):
    """The batches that are asked for next."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def refuse_other_orders(loader: DataLoader[Any]) -> None:
    """Raise ValueError for a DataLoader whose n-th sample is not the Dataset's n-th, or that leaves some out."""
    why = "verdicts are kept by sample number"
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"data: a DataLoader of an IterableDataset, expected one with sample numbers: {why}"
        )
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        raise ValueError(
            f"data: a DataLoader with batch_sampler {type(batches).__name__}, expected batch_size=...: {why}"
        )
    if type(batches.sampler) is not SequentialSampler:
        raise ValueError(
            f"data: a DataLoader that shuffles or samples ({type(batches.sampler).__name__}), expected shuffle=False: "
            f"{why}"
        )
    left = len(batches.sampler) % batches.batch_size
    if batches.drop_last and left:
        raise ValueError(
            f"data: a DataLoader with drop_last=True, which leaves out {left} samples, expected drop_last=False"
        )


def collate(items: list[Any]) -> Batch:
    """A batch of (image, label), images PIL, numpy or tensors, all of one size."""
    images, labels = [], []
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            many = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
            raise TypeError(
                f"data: a sample is a {type(item).__name__}{many}, expected (image, label)"
            )
        images.append(_as_image(item[0]))
        labels.append(_as_label(item[1]))
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"data: images of shapes {list(sizes[0])} and {list(sizes[1])}, expected all of one size"
        )
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def _as_image(image: Any) -> torch.Tensor:
    mode = getattr(image, "mode", None)
    if isinstance(mode, str):  # of PIL, which need not be there
        if mode not in ("L", "RGB"):
            raise ValueError(f"data: a PIL image of mode {mode}, expected L or RGB: convert('RGB')")
        pixels = torch.from_numpy(np.array(image))
        return pixels[..., None] if pixels.dim() == 2 else pixels
    return as_tensor("data", image)


def _as_label(label: Any) -> int:
    if isinstance(label, (torch.Tensor, np.ndarray)) and label.ndim == 0:
        label = label[()].item()
    if isinstance(label, np.integer):
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int):
        shown = label if isinstance(label, (float, str)) else type(label).__name__
        raise TypeError(f"data: a label is {shown!r}, expected an int, the class")
    return label


def _as_batch(batch: Any) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"data: a batch is a {type(batch).__name__}, expected (images, labels)")
    images = as_tensor("data", batch[0]).cpu()
    check_images("data", images)
    return images, as_labels(batch[1], len(images)).cpu()


def _noted_labels(dataset: Any) -> torch.Tensor | None:
    """The labels that a Dataset says it has, as torchvision's do; None where it says none."""
    if isinstance(dataset, Subset):
        noted = _noted_labels(dataset.dataset)
        return None if noted is None else noted[torch.as_tensor(dataset.indices)]
    try:
        return as_labels(dataset.targets, len(dataset)).cpu()
    except (AttributeError, TypeError, ValueError):
        return None
