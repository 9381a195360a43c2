"""What tells one set of weights, or of samples, from another: a hash of its bytes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from iaat_fast.data import Samples
from iaat_fast.evaluate.weights import plain_state_dict


def of_weights(model: nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and values of the model's state, in hexadecimal."""
    found = hashlib.sha256()
    for name, value in plain_state_dict(model).items():
        if isinstance(value, Tensor):
            _add(found, name, value)
    return found.hexdigest()


def of_samples(split: Samples) -> str:
    """SHA-256 of what tells the split's samples from others (`Samples.identity`), in hexadecimal."""
    found = hashlib.sha256()
    for name, value in split.identity():
        _add(found, name, value)
    return found.hexdigest()


def _add(found: hashlib._Hash, name: str, value: Tensor) -> None:
    found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
    found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
