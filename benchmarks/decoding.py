"""Images per second from JPEG files to batches, compared with the rate that training needs.

Decoding alone, with the training transform and with the test transform is timed on one core, in this process, and
training batches by worker processes; they take turns. Images are decoded by PIL: torchvision's own decoder is not used,
because its compiled operators do not load with every torch. NVIDIA's DALI: not measured.

The rate that training needs is the paper's, from its Table 9: 110 epochs of 1,281,167 images in 92 hours on 64 V100s;
or `--need`, in images per second and GPU. The record has the files' mean size, since a set of smaller images decodes
faster than ImageNet's own files.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from benchmarks import registry, targets
from benchmarks.interleave import interleave
from benchmarks.record import Record, Row
from benchmarks.registry import positive
from iaat_fast import data
from iaat_fast.data import FolderSplit
from iaat_fast.data.decoding import decode, decode_augmented, test_transform

PAPER_NEED = 110 * 1_281_167 / (92 * 3600) / 64
LOADER = "training batches"


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="with train/ and val/; with --quick made up")
    add("--limit", type=positive, metavar="N", help="training images (500)")
    add("--workers", type=positive, metavar="K", help="processes (2)")
    add("--rounds", type=positive, metavar="N", help="5")
    add("--need", type=float, default=PAPER_NEED, metavar="RATE")


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.data is None and not options.quick:
        parser.error("--data: nothing given, expected a folder with train/ and val/")
    registry.defaults(options, limit=(8, 500), workers=(1, 2), rounds=(2, 5))


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    record.machine["threads"] = 1
    with _on_one_thread(), tempfile.TemporaryDirectory() as made:
        folder = options.data or made_up(Path(made))
        split = data.load("imagenet", folder, limit=options.limit, workers=1).train
        assert isinstance(split, FolderSplit)
        record.facts |= {"images": len(split), "mean_size": sizes(split)}
        record.facts |= {"need_per_gpu": options.need, "dali": "not measured"}
        timings = interleave(providers(split, options.workers), rounds=options.rounds)
        for name, seconds in timings.seconds.items():
            row = Row(case=f"{len(split)} images", provider=name).sampled(seconds)
            rates = sorted((len(split) / seconds).tolist())
            processes = options.workers if name == LOADER else 1
            row.figures = {
                "images_per_second": statistics.median(rates),
                "rates": rates,
                "processes": processes,
                "cores_for_one_gpu": options.need * processes / statistics.median(rates),
            }
            yield row


@contextlib.contextmanager
def _on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def providers(split: FolderSplit, workers: int) -> dict[str, Callable[[], None]]:
    """The timed functions by name; each passes once over all images."""
    paths = [split.path(number) for number in range(len(split))]
    batches = torch.arange(len(split)).split(32)

    def bare() -> None:
        for path in paths:
            decode(path, lambda image: image)

    def training() -> None:
        for number, path in enumerate(paths):
            decode_augmented(path, seed=0, number=number)

    def testing() -> None:
        for path in paths:
            decode(path, test_transform())

    def loader() -> None:
        helped = FolderSplit(split.root, split.files, split.labels, workers)
        for _ in helped.batches(batches, range(len(batches)), augment=True):
            pass

    return {
        "decoding alone": bare,
        "training view": training,
        "test view": testing,
        LOADER: loader,
    }


def sizes(split: FolderSplit) -> dict[str, float]:
    """Mean width, height and bytes of the files."""
    paths = [split.path(number) for number in range(len(split))]
    shapes = []
    for path in paths:
        with Image.open(path) as image:
            shapes.append(image.size)
    width, height = (statistics.fmean(side) for side in zip(*shapes, strict=True))
    return {
        "width": width,
        "height": height,
        "bytes": statistics.fmean(path.stat().st_size for path in paths),
    }


def made_up(folder: Path) -> Path:
    """Random smooth images of 224 x 224 in two classes: 4 of each to train on, one to test."""
    pixels = targets.smooth_noise(10, 224).mul(255).byte().permute(0, 2, 3, 1).numpy()
    for number, image in enumerate(pixels):
        part, name = ("val" if number >= 8 else "train"), "ab"[number % 2]
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / part / name / f"{number}.JPEG")
    return folder
