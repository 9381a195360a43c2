"""`no_malloc_trim`: keep glibc from returning memory to the kernel during attacks and training on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator

import torch

# malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 1 << 20

# If the environment sets one of these, glibc's settings are left alone.
_TUNABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
)

_lock = threading.Lock()
_holders = 0


@contextlib.contextmanager
def no_malloc_trim(device: torch.device) -> Iterator[None]:
    """Inside this context, memory that the process frees stays with the process, if `device` is a CPU.

    By default glibc returns large blocks to the kernel as soon as they are free, and every step of an attack or of
    training gets new pages for its activations: some 40,000 page faults per step of a ResNet-18 at batch 64, 9,000
    with this. Afterwards what is free is returned, and the thresholds are those at which glibc's own adjustment ends
    (32 MiB and 64 MiB). Does nothing with another C library, or where the environment sets one of glibc's own
    (GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_, ...). May be nested, and held by several threads.
    """
    if device.type != "cpu" or _glibc is None:
        yield
        return
    _hold(+1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _holders
    with _lock:
        before, _holders = _holders, _holders + change
        if before == 0:
            _set(_MMAP_MAX, 0)
            _set(_TRIM_THRESHOLD, 2**31 - 1)
        elif _holders == 0:
            _set(_MMAP_MAX, 65536)
            _set(_MMAP_THRESHOLD, 32 * _MIB)
            _set(_TRIM_THRESHOLD, 64 * _MIB)
            assert _glibc is not None
            _glibc.malloc_trim(64 * _MIB)


def _set(parameter: int, value: int) -> None:
    assert _glibc is not None
    _glibc.mallopt(parameter, value)


def _find() -> ctypes.CDLL | None:
    """glibc, or None where the process runs on another C library or the environment has settings for glibc."""
    names: Callable[[str], str | None] | None = getattr(os, "confstr", None)
    try:
        version = names("CS_GNU_LIBC_VERSION") if names is not None else None
    except (ValueError, OSError):
        version = None
    if version is None or any(name in os.environ for name in _TUNABLES):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


_glibc = _find()
