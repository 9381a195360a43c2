"""What the launches of Triton kernels share: the device, the width of offsets and the rounding."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

# 4 warps with two vectors of 16 bytes a thread: in a step six loads in flight before the first is needed.
VECTORS = 256
WARPS = 4
INT32_MAX = 2**31 - 1
# Unlike 3.9, Triton 3.6 fuses multiplications and additions unless it is told not to.
BITS = {"enable_fp_fusion": False}


def wide(elements: int) -> bool:
    """Whether so many elements need 64 bits to count."""
    return elements > INT32_MAX


def on(device: torch.device) -> Any:
    """Triton launches on the current device, whichever its arguments lie on."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
