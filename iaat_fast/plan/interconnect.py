"""The time that messages between GPUs take: the network, and the exchange of gradients over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel sends at once (its bucket_cap_mb)."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network that connects GPUs.

    link: bytes per second and GPU, one way, to the others of its node.
    between: bytes per second, one way, between a node and the others, over all its adapters together.
    per_node: GPUs of a node.
    latency, latency_between: seconds of one hop within a node, and between nodes.
    """

    link: float
    between: float
    per_node: int
    latency: float
    latency_between: float

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds to sum `size` bytes over the GPUs, with the result on all of them.

        The faster of a ring and a tree, between which NCCL chooses by a model of its own. A ring over several nodes is
        as fast as its slowest hop: the rings through all adapters of a node share the bandwidth out of it.
        """
        if gpus == 1:
            return 0.0
        bandwidth, hop = self.hop(gpus)
        return min(ring(size, gpus, bandwidth, hop), tree(size, gpus, bandwidth, hop))

    def broadcast(self, size: float, gpus: int) -> float:
        """Seconds to send `size` bytes of one GPU to all others, down a tree."""
        if gpus == 1:
            return 0.0
        bandwidth, hop = self.hop(gpus)
        return size / bandwidth + hop * math.ceil(math.log2(gpus))

    def hop(self, gpus: int) -> tuple[float, float]:
        """Bandwidth and latency of the slowest hop between `gpus` GPUs."""
        if gpus <= self.per_node:
            return self.link, self.latency
        return min(self.link, self.between), max(self.latency, self.latency_between)


def ring(size: float, gpus: int, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce: n - 1 hops to sum and n - 1 to distribute, of size / n bytes each.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    hops = 2 * (gpus - 1)
    return hops / gpus * size / bandwidth + hops * latency


def tree(size: float, gpus: int, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce up and down a binary tree, pipelined in small pieces."""
    return 2 * size / bandwidth + 2 * math.ceil(math.log2(gpus)) * latency


def gradients(
    network: Network, size: float, gpus: int, backward: float, *, overlap: bool = True
) -> tuple[float, float]:
    """Seconds to all-reduce `size` bytes of gradients in buckets, and the seconds that the step waits for it.

    Args:
        network, size, gpus: see `Network.all_reduce`.
        backward: seconds of the backward that computes the gradients.
        overlap: each bucket is sent as soon as it is full, while the backward runs, at full speed; the step waits only
            for what does not fit into the backward, and at least for the last bucket.
    """
    if gpus == 1:
        return 0.0, 0.0
    sizes = [BUCKET] * int(size // BUCKET) + ([size % BUCKET] if size % BUCKET else [])
    seconds = [network.all_reduce(bucket, gpus) for bucket in sizes]
    total = sum(seconds)
    if not overlap:
        return total, total
    return total, max(seconds[-1], total - backward)
