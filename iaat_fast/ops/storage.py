"""What the compiled backends share: the codes of dtypes, and results written to a tensor's contiguous stand-in."""

from __future__ import annotations

import torch
from torch import Tensor

# As in csrc/types.h.
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def written(tensor: Tensor, storage: Tensor) -> None:
    """Hand what a kernel wrote to tensor's contiguous stand-in, or to tensor itself, over to autograd and tensor."""
    if storage is tensor:
        # The kernel wrote behind torch's back: a graph that saved the old values must learn that they are gone.
        torch.autograd.graph.increment_version(tensor)
    else:
        tensor.copy_(storage)
