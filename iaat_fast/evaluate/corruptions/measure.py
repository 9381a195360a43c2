"""Accuracy under each corruption, and their summary: mean accuracy and mCE."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from iaat_fast import validate
from iaat_fast.attacks.model import attacked, logits_of
from iaat_fast.data import Split, UnreadableImage, fetch
from iaat_fast.evaluate.corruptions.base import (
    ALEXNET_ERRORS,
    SEVERITIES,
    CorruptedImages,
    ImageSequence,
)
from iaat_fast.evaluate.record import rounded
from iaat_fast.evaluate.results import wilson
from iaat_fast.evaluate.shared_pgd import correct as classified_correctly
from iaat_fast.validate import one_line

Progress = Callable[[int, int], None]

WORTH_WORKERS = 1000
"""Worker processes are used from this many images per severity on: starting them takes 0.1 s, up to 95 times."""


@dataclass(frozen=True)
class Measured:
    """One corruption's row of the record, and its verdicts: bool [5, N], True where classified correctly."""

    row: dict[str, Any]
    verdicts: np.ndarray


def measure_corruptions(
    model: nn.Module,
    images: CorruptedImages,
    *,
    device: torch.device | str = "cpu",
    done: Iterable[str] = (),
    batch_size: int = 256,
    workers: int | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> Iterator[Measured]:
    """Measure one corruption after the other, so that each can be saved when it is finished.

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes]. It is evaluated in eval mode; its
            mode is restored.
        images: what to measure on.
        device: where the model is.
        done: names of corruptions to skip, which an interrupted evaluation has measured already.
        batch_size: samples per forward; changes no verdict.
        workers: processes that decode or corrupt images; 0: this process does. None: half the cores, at most 8, if
            there are at least `WORTH_WORKERS` images.
        progress: called with the name of each corruption; returns a function that is called after each batch with the
            number of images done and of all.

    A corruption with an image that cannot be read is not yielded but entered into `images.missing`, with the reason.

    Raises:
        ValueError: a batch size below 1.
        ChildProcessError: a worker process has died.
    """
    validate.integer("batch_size", batch_size, 1)
    if workers is None:
        many = len(images.labels) >= WORTH_WORKERS
        workers = min(8, (os.cpu_count() or 1) // 2) if many else 0
    passed = set(done)
    for name in images.names:
        if name in passed or name in images.missing:
            continue
        started = time.perf_counter()
        told = progress(name) if progress is not None else None
        try:
            verdicts = _verdicts(
                model, images, name, torch.device(device), batch_size, workers, told
            )
        except UnreadableImage as error:
            images.missing[name] = str(error)
            continue
        seconds = rounded(time.perf_counter() - started)
        yield Measured(_row(name, images.origin, verdicts, seconds), verdicts)


def summarise(rows: Iterable[dict[str, Any]], images: CorruptedImages) -> dict[str, Any]:
    """The record's row over all corruptions.

    Args:
        rows: those that `measure_corruptions` yielded, now or earlier.
        images: what they were measured on.

    Returns:
        `mean_accuracy` (also as `accuracy`) over the measured corruptions, their number (`types`), and `mce`, see
        `mean_corruption_error`, or None if it does not apply to these images. `missing` has a text for each corruption
        that was not measured; `complete`: there is none.
    """
    measured = [row for row in rows if row["kind"] == "corruption"]
    accuracies = {row["corruption"]: row["accuracy"] for row in measured}
    missing = [f"{name}: {why}" for name, why in images.missing.items() if name not in accuracies]
    mean = math.fsum(accuracies.values()) / len(accuracies) if accuracies else None
    return {
        "key": "corruptions",
        "kind": "corruptions",
        "part": "corruptions",
        "accuracy": mean,
        "mean_accuracy": mean,
        "types": len(accuracies),
        "mce": mean_corruption_error(accuracies) if images.normalised else None,
        "source": images.origin,
        "complete": not missing,
        "missing": missing,
        "seconds": rounded(math.fsum(row["seconds"] for row in measured)),
    }


def footnotes(row: dict[str, Any]) -> list[str]:
    """Notes below a table that shows the row of `summarise`: generated images, mCE, what is missing."""
    notes = []
    if row["source"] == "generated":
        notes.append(
            "corruptions: generated from the test images, with ImageNet-C's strengths; not the published files"
        )
    if row["mce"] is not None:
        notes.append(f"mCE {row['mce']:.1f}, AlexNet is 100")
    if not row["complete"]:
        notes.append(
            f"corruptions: incomplete, {row['types']} measured; {'; '.join(row['missing'])}"
        )
    return notes


def mean_corruption_error(accuracies: dict[str, float]) -> float | None:
    """mCE in percent: the mean of error / AlexNet's error over the main corruptions in `accuracies`.

    Args:
        accuracies: by corruption, the mean over the severities, in [0, 1]. Only corruptions in `MAIN` count.

    Returns:
        mCE, which is 100 for AlexNet itself; None if there is no main corruption.

    Source: Hendrycks and Dietterich 2019, Section 4.1.
    """
    ratios = [
        (1 - accuracies[name]) / error
        for name, error in ALEXNET_ERRORS.items()
        if name in accuracies
    ]
    return 100 * math.fsum(ratios) / len(ratios) if ratios else None


def _verdicts(
    model: nn.Module,
    images: CorruptedImages,
    name: str,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> np.ndarray:
    """bool [5, N]: whether each sample is classified correctly at each severity."""
    samples = len(images.labels)
    verdicts = torch.zeros(len(SEVERITIES), samples, dtype=torch.bool)
    with attacked(model, "eval"), torch.no_grad():
        for severity, right in zip(SEVERITIES, verdicts, strict=True):
            start = 0
            for pixels in _batches(images.images(name, severity), batch_size, workers):
                rows = slice(start, start + len(pixels))
                batch = Split(pixels, images.labels[rows]).to(device)
                x, y = fetch(batch, torch.arange(len(pixels), device=device))
                right[rows] = classified_correctly(logits_of(model, x), y).cpu()
                start = rows.stop
                if progress is not None:
                    progress((severity - 1) * samples + start, len(SEVERITIES) * samples)
    return verdicts.numpy()


def _batches(images: ImageSequence, batch_size: int, workers: int) -> Iterator[Tensor]:
    """uint8 [B, H, W, C], in order."""
    loader = DataLoader(
        _Readable(images),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_stack,
        # Of its own: a loader without one draws a number from torch's generator.
        generator=torch.Generator(),
    )
    try:
        for batch in loader:
            if isinstance(batch, str):
                raise UnreadableImage(batch)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that reads or corrupts images has died, out of memory or killed ({one_line(error)})"
        ) from error


class _Readable(Dataset):
    """Images as tensors, or the text of an error: an exception of a worker would arrive as a whole traceback."""

    def __init__(self, images: ImageSequence) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor | str:
        try:
            return torch.from_numpy(np.array(self.images[number]))
        except (OSError, ValueError) as error:
            return one_line(error)


def _stack(batch: list[Tensor | str]) -> Tensor | str:
    for image in batch:
        if isinstance(image, str):
            return image
    tensors = [image for image in batch if isinstance(image, Tensor)]
    shapes = {tuple(image.shape) for image in tensors}
    if len(shapes) > 1:
        return f"images of several sizes: {' and '.join(str(list(s)) for s in sorted(shapes))}"
    return torch.stack(tensors)


def _row(name: str, origin: str, verdicts: np.ndarray, seconds: float) -> dict[str, Any]:
    samples = verdicts.shape[1]
    correct = [int(right.sum()) for right in verdicts]
    total = sum(correct)
    return {
        "key": f"corruption-{name}",
        "kind": "corruption",
        "part": "corruptions",
        "corruption": name,
        "accuracy": total / verdicts.size,
        "correct": total,
        "samples": verdicts.size,
        # The five verdicts on one image depend on each other: N are independent, not 5 N.
        "interval_95": list(wilson(total / len(SEVERITIES), samples)),
        "severities": [
            {
                "severity": severity,
                "accuracy": right / samples,
                "correct": right,
                "samples": samples,
            }
            for severity, right in zip(SEVERITIES, correct, strict=True)
        ],
        "source": origin,
        "seconds": seconds,
    }
