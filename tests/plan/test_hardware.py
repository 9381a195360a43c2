"""Seconds of a pass by a GPU's peaks and records, and of messages by ring and tree, the slowest hop and overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.plan.cost import Kernel, Pass
from iaat_fast.plan.hardware import (
    ARITHMETIC,
    BUCKET,
    GPUS,
    LAUNCHES,
    MEASURED,
    TRAFFIC,
    Assumptions,
    Modelled,
    Network,
    find_gpu,
    gradients,
    recorded,
    ring,
    tree,
)

NETWORK = Network(link=100e9, between=20e9, per_node=8, latency=1e-6, latency_between=10e-6)
V100 = GPUS["v100"]
# 125e12 x 0.5 operations and 900e9 x 0.5 bytes a second.
HALF = Modelled(gpu=V100, assumed=Assumptions(share=0.5, bandwidth_share=0.5, launch=1e-6))


def a_pass(*kernels: tuple[int, int]) -> Pass:
    return Pass(images=1, forward=tuple(Kernel(operations=o, bytes=b) for o, b in kernels))


def test_an_operator_takes_its_longest_term() -> None:
    counted = a_pass((625 * 10**9, 1), (1, 45 * 10**8), (1, 1))
    spent = HALF.seconds("gradient", counted, "fp16")
    assert spent == pytest.approx({ARITHMETIC: 10e-3, TRAFFIC: 10e-3, LAUNCHES: 1e-6})


def test_precision_chooses_the_peak() -> None:
    assert [V100.peak(p) for p in ("fp16", "bf16", "tf32", "fp32")] == [125e12, *[15.7e12] * 3]
    h100 = find_gpu("H100")
    assert [h100.peak(p) for p in ("bf16", "tf32", "fp32")] == [989e12, 494e12, 494e12]


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="--gpu: 'h20' is unknown, did you mean 'h200'"):
        find_gpu("h20")


@pytest.mark.parametrize(
    "bad", [{"share": 0.0}, {"share": 1.5}, {"bandwidth_share": float("nan")}, {"launch": -1.0}]
)
def test_assumptions_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"--{next(iter(bad)).replace('_', '-')}: "):
        Assumptions(**bad)


def record(gpu: str | None = "NVIDIA V100-SXM2-32GB", **changes: Any) -> dict[str, Any]:
    row = {
        "name": "fp16",
        "kind": "engine",
        "precision": "fp16",
        "status": "ok",
        "flops_per_second": 2e13,
    }
    case = {"model": "resnet18", "width": None, "records": [row | changes]}
    return {
        "machine": {"gpu": gpu},
        "matmul_flops_per_s": {"fp16": 1e14, "fp32": 1e13},
        "cases": [case],
    }


def found_in(folder: Path, content: dict[str, Any], network: str = "resnet18") -> Any:
    (folder / "attacks-gpu.json").write_text(json.dumps(content))
    return recorded(folder, HALF, "v100", network)


def test_a_recorded_attack_is_measured(tmp_path: Path) -> None:
    rates = found_in(tmp_path, record())
    assert rates.source("gradient", "fp16") == "measured (attacks-gpu.json)"
    counted = a_pass((10**12, 1))
    assert rates.seconds("gradient", counted, "fp16") == {MEASURED: pytest.approx(0.05)}


def test_the_rows_of_the_last_record_of_a_machine_are_read(tmp_path: Path) -> None:
    """As `python -m benchmarks attacks` writes them: a folder per benchmark, other metrics among the rows."""
    figures = {"model": "resnet18", "width": None, "kind": "engine", "precision": "fp16"}
    for number, speed in ((2, 1e13), (10, 2e13)):
        content = record() | {"cases": []}
        content["rows"] = [
            {"provider": "fp16", "metric": "device time", "status": "ok", "figures": {}},
            {"provider": "fp16", "metric": "time", "status": "ok"}
            | {"figures": figures | {"flops_per_second": speed}},
        ]
        (tmp_path / "attacks").mkdir(exist_ok=True)
        (tmp_path / "attacks" / f"v100-{number}.json").write_text(json.dumps(content))
    rates = recorded(tmp_path, HALF, "v100", "resnet18")
    assert rates.source("gradient", "fp16") == "measured (attacks/v100-10.json)"
    seconds = rates.seconds("gradient", a_pass((10**12, 1)), "fp16")
    assert seconds == {MEASURED: pytest.approx(0.05)}


def test_recorded_products_take_the_place_of_the_peak(tmp_path: Path) -> None:
    rates = found_in(tmp_path, record())
    assert rates.source("forward", "fp32").startswith("modelled (matrix products measured in")
    spent = rates.seconds("forward", a_pass((10**12, 1)), "fp32")
    assert spent == {ARITHMETIC: pytest.approx(1e12 / (1e13 * 0.5))}


def test_another_networks_attack_is_not_taken(tmp_path: Path) -> None:
    rates = found_in(tmp_path, record(), network="wrn32-10")
    assert rates.source("gradient", "fp16").startswith("modelled")


@pytest.mark.parametrize("gpu", [None, "NVIDIA A100-SXM4-80GB"])
def test_another_machines_records_are_not_taken(gpu: str | None, tmp_path: Path) -> None:
    assert found_in(tmp_path, record(gpu)) is HALF


def test_a_contender_that_failed_is_not_taken(tmp_path: Path) -> None:
    rates = found_in(tmp_path, record(status="failed"))
    assert rates.source("gradient", "fp16").startswith("modelled")


def test_no_folder_no_records(tmp_path: Path) -> None:
    assert recorded(tmp_path / "none", HALF, "v100", "resnet18") is HALF


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
