"""One hash of tensors and plain values, however they are nested."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch


def digest(value: Any) -> str:
    """The SHA-256, in hexadecimal, of tensors, numbers, strings and None in dicts, lists and tuples.

    Order counts, the kind of mapping or sequence does not; of a tensor its dtype, shape and elements
    do, its device and strides do not.
    """
    hasher = hashlib.sha256()
    _update(hasher, value)
    return hasher.hexdigest()


def _update(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        hasher.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        hasher.update(plain.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        hasher.update(f"mapping {len(value)};".encode())
        for key, inner in value.items():
            _update(hasher, key)
            _update(hasher, inner)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        values = list(value)
        hasher.update(f"sequence {len(values)};".encode())
        for inner in values:
            _update(hasher, inner)
    else:
        hasher.update(f"{type(value).__name__} {value!r};".encode())
