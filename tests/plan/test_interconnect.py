"""Seconds of messages by ring and tree, over the slowest hop, and what a backward hides of them."""

from __future__ import annotations

import pytest

from iaat_fast.plan.interconnect import BUCKET, Network, gradients, ring, tree

NETWORK = Network(link=100e9, between=20e9, per_node=8, latency=1e-6, latency_between=10e-6)


def simulated_ring(size: float, gpus: int, bandwidth: float, latency: float) -> float:
    """Send chunks round, hop by hop, until every GPU has every sum; all links work at once."""
    has = [{chunk: {gpu} for chunk in range(gpus)} for gpu in range(gpus)]
    seconds = 0.0
    for hop in range(2 * (gpus - 1)):
        sent = [(gpu, (gpu - hop) % gpus) for gpu in range(gpus)]
        parts = [(gpu, chunk, set(has[gpu][chunk])) for gpu, chunk in sent]
        for gpu, chunk, summands in parts:
            has[(gpu + 1) % gpus][chunk] |= summands
        seconds += size / gpus / bandwidth + latency
    everyone = set(range(gpus))
    assert all(summands == everyone for of_gpu in has for summands in of_gpu.values())
    return seconds


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_ring_is_what_sending_chunks_round_takes(gpus: int) -> None:
    assert ring(1e6, gpus, 1e9, 1e-6) == pytest.approx(simulated_ring(1e6, gpus, 1e9, 1e-6))


def test_ring_by_hand() -> None:
    # 100 MB over 4 GPUs at 10 GB/s: 2 x 3/4 x 10 ms, and 6 hops of 1 us.
    assert ring(100e6, 4, 10e9, 1e-6) == pytest.approx(15e-3 + 6e-6)


def test_tree_wins_for_small_messages_on_many_gpus() -> None:
    assert tree(1e3, 512, 20e9, 10e-6) < ring(1e3, 512, 20e9, 10e-6)
    assert tree(1e9, 4, 20e9, 10e-6) > ring(1e9, 4, 20e9, 10e-6)


def test_between_nodes_the_slowest_hop_counts() -> None:
    within, beyond = NETWORK.all_reduce(1e9, 8), NETWORK.all_reduce(1e9, 16)
    assert within == pytest.approx(2 * 7 / 8 * 1e9 / 100e9, rel=1e-3)
    assert beyond == pytest.approx(2 * 15 / 16 * 1e9 / 20e9, rel=1e-2)


def test_one_gpu_sends_nothing() -> None:
    assert NETWORK.all_reduce(1e9, 1) == NETWORK.broadcast(1e9, 1) == 0
    assert gradients(NETWORK, 1e9, 1, 1.0) == (0.0, 0.0)


def test_a_long_backward_hides_all_but_the_last_bucket() -> None:
    size = 2.5 * BUCKET
    total, waited = gradients(NETWORK, size, 16, backward=10.0)
    assert waited == pytest.approx(NETWORK.all_reduce(BUCKET / 2, 16))
    assert total == pytest.approx(2 * NETWORK.all_reduce(BUCKET, 16) + waited)


def test_what_a_short_backward_does_not_hide_is_waited_for() -> None:
    total, waited = gradients(NETWORK, 4 * BUCKET, 16, backward=1e-3)
    assert waited == pytest.approx(total - 1e-3)


def test_without_overlap_all_of_it_is_waited_for() -> None:
    total, waited = gradients(NETWORK, 4 * BUCKET, 16, backward=10.0, overlap=False)
    assert total == waited > 0
