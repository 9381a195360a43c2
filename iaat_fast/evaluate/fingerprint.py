"""What tells one set of weights, or of samples, from another: a hash of its bytes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from iaat_fast.data import Split


def of_weights(model: nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and values of the model's state, in hexadecimal."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            _add(found, name, value)
    return found.hexdigest()


def of_samples(split: Split) -> str:
    """SHA-256 of the split's images and labels, in hexadecimal."""
    found = hashlib.sha256()
    _add(found, "images", split.images)
    _add(found, "labels", split.labels)
    return found.hexdigest()


def _add(found: hashlib._Hash, name: str, value: Tensor) -> None:
    found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
    found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
