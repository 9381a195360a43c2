"""`torchvision(name)`: a module of torchvision, also where torchvision's compiled ops do not load."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

# Of `torchvision::nms` and `torchvision::qnms`, which its import looks up.
NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def datasets() -> ModuleType:
    """`torchvision.datasets`."""
    return torchvision("datasets")


@functools.cache
def torchvision(name: str) -> ModuleType:
    """Import and return `torchvision.<name>`, for example "datasets".

    A torchvision wheel built for CUDA next to a torch for CPU cannot load its extension, and then
    its import fails with "operator torchvision::nms does not exist", although reading a data set
    needs no operator. Declaring the missing schemas lets the import through. They are declared only
    after that failure, so a torchvision whose ops load never sees them.

    Raises:
        ValueError: torchvision is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("torchvision", "PIL"):
            raise
        raise ValueError(
            f"{error.name} is not installed, and reads these images: pip install 'iaat-fast[imagenet]'"
        ) from error
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            _schemas().define(operator + NMS_SIGNATURE)
        return importlib.import_module(f"torchvision.{name}")


@functools.cache
def _schemas() -> torch.library.Library:
    # Cached because the schemas live only as long as the Library that declared them.
    return torch.library.Library("torchvision", "FRAGMENT")
