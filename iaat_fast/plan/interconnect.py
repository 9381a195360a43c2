"""How long messages between GPUs take: what connects them, and the exchange of gradients over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel sends at once (its bucket_cap_mb)."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What GPUs are connected by.

    link: bytes per second and GPU, one way, to the others of its node.
    between: bytes per second, one way, between a node and the others, of all its adapters together.
    per_node: GPUs of a node.
    latency, latency_between: seconds of one hop within a node, and between nodes.
    """

    link: float
    between: float
    per_node: int
    latency: float
    latency_between: float

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds for the sum of `size` bytes of each GPU to be on all of them.

        The faster of a ring and a tree, between which NCCL chooses by its own model. A ring over several nodes is as
        fast as its slowest hop: rings through all adapters of a node share what flows out of it.
        """
        if gpus == 1:
            return 0.0
        bandwidth, hop = self.hop(gpus)
        return min(ring(size, gpus, bandwidth, hop), tree(size, gpus, bandwidth, hop))

    def broadcast(self, size: float, gpus: int) -> float:
        """Seconds for `size` bytes of one GPU to be on all of them, down a tree."""
        if gpus == 1:
            return 0.0
        bandwidth, hop = self.hop(gpus)
        return size / bandwidth + hop * math.ceil(math.log2(gpus))

    def hop(self, gpus: int) -> tuple[float, float]:
        """Bandwidth and latency of the slowest hop between so many GPUs."""
        if gpus <= self.per_node:
            return self.link, self.latency
        return min(self.link, self.between), max(self.latency, self.latency_between)


def ring(size: float, gpus: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce: n - 1 hops to sum, n - 1 to spread, of size / n bytes each.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    hops = 2 * (gpus - 1)
    return hops / gpus * size / bandwidth + hops * latency


def tree(size: float, gpus: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce up and down a binary tree, in pieces that follow each other at once."""
    return 2 * size / bandwidth + 2 * math.ceil(math.log2(gpus)) * latency


def gradients(
    network: Network, size: float, gpus: int, backward: float, *, overlap: bool = True
) -> tuple[float, float]:
    """Seconds to all-reduce `size` bytes of gradients in buckets, and how many of them the step waits.

    Args:
        backward: seconds of the backward that makes them.
        overlap: buckets are sent while the backward runs, each as soon as it is full and at the model's full
            speed; only what does not fit into the backward, and at least the last bucket, is waited for.
    """
    if gpus == 1:
        return 0.0, 0.0
    sizes = [BUCKET] * int(size // BUCKET) + ([size % BUCKET] if size % BUCKET else [])
    seconds = [network.all_reduce(bucket, gpus) for bucket in sizes]
    total = sum(seconds)
    if not overlap:
        return total, total
    return total, max(seconds[-1], total - backward)
