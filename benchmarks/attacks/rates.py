"""How much arithmetic an attack is, and how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.targets import Target

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Large enough that a product is all arithmetic.
_SIZE = {"cuda": 8192, "cpu": 1024}


def flops_per_gradient(target: Target) -> float:
    """Floating-point operations of one image's forward pass and gradient, two per multiply-add; elementwise ones are
    not counted."""
    leaf, y = target.x[:2].detach().requires_grad_(), target.y[:2]
    with FlopCounterMode(display=False) as counter:
        # A copy, because the counter's hooks cannot sit on the leaf that `autograd.grad` asks for.
        loss = F.cross_entropy(target.model(leaf.clone()), y, reduction="sum")
        torch.autograd.grad(loss, leaf)
    return counter.get_total_flops() / len(y)


def matmul_rates(precisions: Iterable[str], device: torch.device) -> dict[str, float]:
    """Floating-point operations per second of a product of square matrices, the median of 20, by precision.

    "fp32" is TF32 where the process allows it, as it then is for every provider in fp32.
    """
    return {precision: _matmul_rate(precision, device) for precision in dict.fromkeys(precisions)}


def _matmul_rate(precision: str, device: torch.device, calls: int = 20) -> float:
    size = _SIZE[device.type]
    matrix = torch.randn(size, size, device=device).to(DTYPES[precision])
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = allowed or precision == "tf32"
        seconds = []
        for call in range(calls + 3):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            wait(device)
            if call >= 3:
                seconds.append(time.perf_counter() - start)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * size**3 / float(np.median(seconds))


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
