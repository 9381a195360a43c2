"""`torchvision(name)`: a module of torchvision, also where its compiled ops do not load; what to install without it."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from iaat_fast import torchvision_ops


def datasets() -> ModuleType:
    """`torchvision.datasets`."""
    return torchvision("datasets")


@functools.cache
def torchvision(name: str) -> ModuleType:
    """Import and return `torchvision.<name>`, for example "datasets".

    Raises:
        ValueError: torchvision is not installed; the message says what to install.
    """
    torchvision_ops.declare()
    try:
        return importlib.import_module(f"torchvision.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("torchvision", "PIL"):
            raise
        raise ValueError(
            f"{package} is not installed, and reads these images: pip install 'iaat-fast[images]'"
        ) from error
