"""`datasets()`: torchvision's data sets, also where torchvision's compiled ops do not load."""

from __future__ import annotations

import functools
from types import ModuleType

import torch

# Of `torchvision::nms` and `torchvision::qnms`, which its import looks up.
NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def datasets() -> ModuleType:
    """Import and return `torchvision.datasets`.

    A torchvision wheel built for CUDA beside a torch for CPU cannot load its extension, and then
    its import fails with "operator torchvision::nms does not exist", although reading a data set
    needs no operator. Declaring the missing schemas lets the import through. They are declared only
    after that failure, so a torchvision whose ops load never sees them.
    """
    try:
        from torchvision import datasets as module
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            _schemas().define(operator + NMS_SIGNATURE)
        from torchvision import datasets as module
    return module


@functools.cache
def _schemas() -> torch.library.Library:
    # Cached because the schemas live only as long as the Library that declared them.
    return torch.library.Library("torchvision", "FRAGMENT")
