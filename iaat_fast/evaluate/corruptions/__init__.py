"""Accuracy under common corruptions: CIFAR-10-C, CIFAR-100-C, ImageNet-C, or the same kinds generated here.

    from iaat_fast.evaluate.corruptions import measure_corruptions, open_corruptions, summarise

    images = open_corruptions(data.test, dataset="cifar10", folder=Path("CIFAR-10-C"))
    measured = list(measure_corruptions(model, images))
    print(summarise([m.row for m in measured], images)["mean_accuracy"])

Every row says whether its images are the published files ("official") or were made here ("generated"); the two are not
the same images, and their accuracies are not to be compared.
"""

from __future__ import annotations

from iaat_fast.evaluate.corruptions.cifar_c import CifarC
from iaat_fast.evaluate.corruptions.footnotes import footnotes
from iaat_fast.evaluate.corruptions.generated import GeneratedCorruptions, can_be_generated
from iaat_fast.evaluate.corruptions.imagenet_c import ImageNetC
from iaat_fast.evaluate.corruptions.images import CorruptedImages
from iaat_fast.evaluate.corruptions.measure import (
    Measured,
    mean_corruption_error,
    measure_corruptions,
    summarise,
)
from iaat_fast.evaluate.corruptions.names import ALEXNET_ERRORS, ALL, MAIN
from iaat_fast.evaluate.corruptions.opening import open_corruptions

__all__ = [
    "ALEXNET_ERRORS",
    "ALL",
    "MAIN",
    "CifarC",
    "CorruptedImages",
    "GeneratedCorruptions",
    "ImageNetC",
    "Measured",
    "can_be_generated",
    "footnotes",
    "mean_corruption_error",
    "measure_corruptions",
    "open_corruptions",
    "summarise",
]
