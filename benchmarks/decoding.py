"""`python -m benchmarks.decoding --data FOLDER`: images per second from JPEG files to batches, and what training needs.

Each view of the images (decoded alone, for training, for testing) is timed on one core, in this process; then training
batches by worker processes. The ways take turns, and the median of the rounds is kept. Decoding is PIL's: torchvision's
own decoder is not used, because its compiled operators do not load beside every torch. NVIDIA's DALI: not measured.

What training needs is the paper's own rate, from its Table 9: 110 epochs of 1,281,167 images in 92 hours on 64 V100s;
or `--need`, images per second and GPU of a faster one. The record has the files' mean size: a subset of shrunken images
decodes sooner than ImageNet's own files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import machine
from benchmarks.attacks import tables
from benchmarks.interleave import interleave
from iaat_fast import data
from iaat_fast.data import FolderSplit
from iaat_fast.data.decoding import decode, decode_augmented, test_transform

PAPER_NEED = 110 * 1_281_167 / (92 * 3600) / 64
COLUMNS = ("view", "processes", "images/s", "spread", "cores for one GPU")


def ways(split: FolderSplit, workers: int) -> dict[str, Callable[[], None]]:
    """What is timed, by name: each passes once over all images."""
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
        "training batches": loader,
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


def measure(split: FolderSplit, *, workers: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Images per second of each way: the median of the rounds, and all of them."""
    timings = interleave(ways(split, workers), rounds=rounds)
    found = {}
    for name, seconds in timings.seconds.items():
        rates = sorted((len(split) / seconds).tolist())
        processes = workers if name == "training batches" else 1
        found[name] = {"rate": statistics.median(rates), "rates": rates, "processes": processes}
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="with train/ and val/")
    parser.add_argument("--limit", type=int, default=500, metavar="N", help="training images")
    parser.add_argument("--workers", type=int, default=2, metavar="K", help="processes")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--need", type=float, default=PAPER_NEED, metavar="RATE")
    parser.add_argument("--out", type=Path, default=Path("build/decoding.json"), metavar="FILE")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    split = data.load("imagenet", options.data, limit=options.limit, workers=1).train
    assert isinstance(split, FolderSplit)
    found = measure(split, workers=options.workers, rounds=options.rounds)
    rows = [
        [
            name,
            str(f["processes"]),
            f"{f['rate']:.0f}",
            f"{f['rates'][0]:.0f} – {f['rates'][-1]:.0f}",
            f"{options.need * f['processes'] / f['rate']:.3f}",
        ]
        for name, f in found.items()
    ]
    tables.write(f"{len(split)} images; one GPU takes {options.need:.1f} a second", COLUMNS, rows)
    result = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.decoding", *argv],
        "machine": machine.describe(),
        "images": len(split),
        "mean_size": sizes(split),
        "need_per_gpu": options.need,
        "images_per_second": found,
        "dali": "not measured",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
