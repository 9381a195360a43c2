"""What a training step keeps in a GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from iaat_fast.plan.figure import Figure
from iaat_fast.plan.passes import Phase, Stage, candidates_at_once
from iaat_fast.plan.workload import Counts

_ITEM = 4  # bytes of a float32: weights, gradients, momentum, images, radii
_HALF = 2
_GROUP = "memory per GPU"


def memory(
    counts: Counts, stages: Mapping[Phase, Sequence[Stage]], batch: int, *, gpus: int
) -> Iterator[Figure]:
    """GB by what they hold, of one GPU with `batch` images; their sum is a lower bound.

    What the allocator leaves unused between blocks, the workspaces of convolutions, and CUDA itself come on top.
    """
    weights = _ITEM * counts.weights
    has_attack = any(s.kind == "gradient" for of_phase in stages.values() for s in of_phase)
    copies = candidates_at_once(counts.config) if "adaptive" in stages else 1
    attacked = counts.of("gradient", copies * batch).saved if has_attack else 0
    yield _counted("weights and statistics", weights + counts.statistics)
    # DistributedDataParallel's buckets are a copy of the gradients.
    yield _counted("gradients", weights * (2 if gpus > 1 else 1))
    yield _counted("momentum", weights)
    if has_attack and counts.is_copied:
        item = _HALF if counts.precisions["gradient"] in ("fp16", "bf16") else _ITEM
        yield _counted("the attack's copy of the weights", item * counts.weights)
    # Of a loss on clean and adversarial images, both forwards are kept.
    losses = max(s.passes for parts in stages.values() for s in parts if s.kind == "update")
    updated = losses * counts.of("update", batch).saved
    yield _counted("activations", max(updated, attacked))
    image = _ITEM * math.prod(counts.images.shape)
    # The clean images, and of each candidate its images and their gradients.
    yield Figure(
        group=_GROUP,
        name="images and their gradients",
        value=image * batch * (1 + 2 * copies) / 1e9,
        unit="GB",
        source="modelled",
    )
    if has_attack:
        yield _counted("radii of all samples", _ITEM * counts.images.samples)
    if counts.images.resident:
        yield _counted("data set", math.prod(counts.images.shape) * counts.images.samples)


def _counted(name: str, size: float) -> Figure:
    return Figure(group=_GROUP, name=name, value=size / 1e9, unit="GB", source="counted")
