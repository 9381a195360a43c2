"""What every launch of a Triton kernel needs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

# Unlike 3.9, Triton 3.6 fuses multiplications and additions unless it is told not to.
BITS = {"enable_fp_fusion": False}


def on(device: torch.device) -> Any:
    """Triton launches on the current device, whichever its arguments lie on."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
