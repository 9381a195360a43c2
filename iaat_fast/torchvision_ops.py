"""`declare()`: lets torchvision be imported also where its compiled ops do not load."""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder

import torch

# Of `torchvision::nms` and `torchvision::qnms`, which its import looks up.
NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def declare() -> torch.library.Library | None:
    """Declare the schemas that torchvision's import looks up, where no library of its own will.

    A torchvision wheel built for CUDA next to a torch for CPU cannot load its extension, and then its import fails
    with "operator torchvision::nms does not exist", although networks and data sets need no operator. The extension
    is loaded here as torchvision itself would; where that works, or torchvision is imported or absent, nothing is
    declared. Called before torchvision, or a module of the user's that may import it, is imported.

    Returns:
        What holds the schemas, which live only as long as it does: cached; None where none were missing.
    """
    if "torchvision" in sys.modules:
        return None
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return None
    _load(spec)
    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    if "nms" not in missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(name + NMS_SIGNATURE)
    return library


def _load(torchvision: ModuleSpec) -> None:
    """Load torchvision's extension, if there is one that this torch can load."""
    found = PathFinder.find_spec("_C", list(torchvision.submodule_search_locations or ()))
    if found is not None and found.origin is not None:
        try:
            torch.ops.load_library(found.origin)
        except OSError:
            return
