"""What a training step keeps in a GPU's memory."""

from __future__ import annotations

import math

from iaat_fast.plan.passes import Phase, Stage
from iaat_fast.plan.workload import Counts

_ITEM = 4  # bytes of a float32: weights, gradients, momentum, images, radii
_HALF = 2


def memory(
    counts: Counts, stages: dict[Phase, tuple[Stage, ...]], batch: int, *, gpus: int
) -> dict[str, float]:
    """Bytes by what they hold, of one GPU with `batch` images; their sum is a lower bound.

    What the allocator leaves unused between blocks, the workspaces of convolutions, and CUDA itself come on top.
    """
    weights = _ITEM * counts.weights
    has_attack = any(s.kind == "gradient" for of_phase in stages.values() for s in of_phase)
    copies = _candidates(counts, stages)
    image = _ITEM * math.prod(counts.images.shape)
    attacked = counts.of("gradient", copies * batch).saved if has_attack else 0
    held = {
        "weights and statistics": weights + counts.statistics,
        "gradients": weights * (2 if gpus > 1 else 1),
        "momentum": weights,
        "activations, of the update or the attack": max(counts.of("update", batch).saved, attacked),
        "images, clean, attacked and their gradients": image * batch * (1 + 2 * copies),
    }
    if has_attack and counts.is_copied:
        item = _HALF if counts.precisions["gradient"] in ("fp16", "bf16") else _ITEM
        held["copy of the weights for the attack"] = item * counts.weights
    if has_attack:
        held["radii of all samples"] = _ITEM * counts.images.samples
    if counts.images.resident:
        held["data set"] = math.prod(counts.images.shape) * counts.images.samples
    return {name: float(size) for name, size in held.items()}


def _candidates(counts: Counts, stages: dict[Phase, tuple[Stage, ...]]) -> int:
    """How many copies of the batch are attacked at once."""
    is_batched = "adaptive" in stages and counts.config.epsilon.strategy == "batched"
    return 3 if is_batched else 1
