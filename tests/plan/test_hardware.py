"""Seconds of a pass by a GPU's peaks and by its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.plan.hardware import (
    ARITHMETIC,
    GPUS,
    LAUNCHES,
    MEASURED,
    TRAFFIC,
    Assumptions,
    Modelled,
    find_gpu,
    recorded,
)
from iaat_fast.plan.kernels import Kernel, Pass

V100 = GPUS["v100"]
# 125e12 x 0.5 operations and 900e9 x 0.5 bytes a second.
HALF = Modelled(
    gpu=V100, assumed=Assumptions(share=0.5, bandwidth_share=0.5, launch=1e-6, host=3e-6)
)


def a_pass(*kernels: tuple[int, int]) -> Pass:
    return Pass(images=1, forward=tuple(Kernel(operations=o, bytes=b) for o, b in kernels))


def test_a_kernel_takes_its_arithmetic_its_traffic_and_its_launches() -> None:
    """A product has two launches, with that of clearing its workspace."""
    spent = HALF.seconds("gradient", a_pass((625 * 10**9, 45 * 10**8), (0, 45 * 10**8)), "fp16")
    assert spent == pytest.approx({ARITHMETIC: 10e-3, TRAFFIC: 20e-3, LAUNCHES: 3e-6})


@pytest.mark.parametrize(
    ("rows", "columns", "done"),
    [
        # 80 multiprocessors, tiles of 128 x 128, or 128 x 64 for few channels.
        (80 * 128, 128, 1.0),
        (81 * 128, 128, 160 / 81),
        (16 * 128, 512, 80 / 64),
        (80 * 128, 64, 1.0),
        (80 * 128, 96, 128 / 96),
        (80 * 128, 160, 256 / 160),
    ],
)
def test_tiles_that_leave_multiprocessors_idle_cost_as_much_as_those_that_do_not(
    rows: int, columns: int, done: float
) -> None:
    operations = 10**9
    product = Kernel(operations=operations, bytes=0, rows=rows, columns=columns)
    assert HALF.arithmetic(product, "fp16") == pytest.approx(done * operations / 62.5e12)


def test_accesses_that_do_not_coalesce_are_slower() -> None:
    """Strided ones take as long in half precision as in fp32, and so do convolutions with few channels."""

    def traffic(access: str, item: int) -> float:
        return HALF.traffic(
            Kernel(
                operations=0,
                bytes=item * 10**9,
                elements=10**9,
                access="coalesced" if access == "narrow" else access,  # type: ignore[arg-type]
                narrow=access == "narrow",
            )
        )

    assert traffic("coalesced", 2) == pytest.approx(2e9 / 450e9)
    assert traffic("coalesced", 2) < traffic("broadcast", 2) < traffic("strided", 2)
    for access in ("strided", "narrow"):
        assert traffic("broadcast", 4) < traffic(access, 2) == traffic(access, 4)


def test_outside_of_a_graph_the_slower_of_host_and_device_decides() -> None:
    few, many = (
        Pass(images=1, forward=(Kernel(operations=0, bytes=45 * 10**5),), launched=launched)
        for launched in (1, 100)
    )
    in_graph = sum(HALF.seconds("update", many, "fp16").values())
    assert in_graph == pytest.approx(11e-6)
    eager = [HALF.seconds("update", each, "fp16", captured=False) for each in (few, many)]
    assert [sum(each.values()) for each in eager] == pytest.approx([in_graph, 300e-6])
    assert eager[1][TRAFFIC] == pytest.approx(10e-6)


def test_precision_chooses_the_peak() -> None:
    assert [V100.peak(p) for p in ("fp16", "bf16", "tf32", "fp32")] == [125e12, *[15.7e12] * 3]
    h100 = find_gpu("H100")
    assert [h100.peak(p) for p in ("bf16", "tf32", "fp32")] == [989e12, 494e12, 494e12]


def test_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^--gpu: 'h20', expected one of .*; did you mean 'h200'"):
        find_gpu("h20")


@pytest.mark.parametrize(
    "bad",
    [
        {"host": -1.0},
        {"share": 0.0},
        {"share": 1.5},
        {"bandwidth_share": float("nan")},
        {"launch": -1.0},
    ],
)
def test_assumptions_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"--{next(iter(bad)).replace('_', '-')}: "):
        Assumptions(**bad)


def record(gpu: str | None = "NVIDIA V100-SXM2-32GB", **changes: Any) -> dict[str, Any]:
    figures = {"model": "resnet18", "width": None, "kind": "engine", "precision": "fp16"}
    row = {
        "provider": "fp16",
        "metric": "time",
        "status": "ok",
        "figures": figures | {"flops_per_second": 2e13},
    }
    return {
        "machine": {"gpu": gpu},
        "matmul_flops_per_s": {"fp16": 1e14, "fp32": 1e13},
        "rows": [row | changes],
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
        content = record()
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
    assert {ARITHMETIC: spent[ARITHMETIC]} == {ARITHMETIC: pytest.approx(1e12 / (1e13 / 0.8 * 0.5))}


@pytest.mark.parametrize(("name", "rates"), [("exact", 2), ("fp16", 0)])
def test_of_older_records_only_attacks_on_the_live_network_are_taken(
    name: str, rates: int, tmp_path: Path
) -> None:
    """Their copies were no programs yet."""
    each = {"kind": "engine", "status": "ok", "flops_per_second": 2e13, "name": name}
    rows = [each | {"precision": precision} for precision in ("fp16", "fp32")]
    cases = [{"model": "resnet18", "width": None, "records": rows}]
    found = found_in(tmp_path, record() | {"rows": [], "cases": cases})
    assert len(found.attacks) == rates


def test_another_networks_attack_is_not_taken(tmp_path: Path) -> None:
    rates = found_in(tmp_path, record(), network="wrn32-10")
    assert rates.source("gradient", "fp16").startswith("modelled")


@pytest.mark.parametrize("gpu", [None, "NVIDIA A100-SXM4-80GB"])
def test_another_machines_records_are_not_taken(gpu: str | None, tmp_path: Path) -> None:
    assert found_in(tmp_path, record(gpu)) is HALF


def test_a_provider_that_failed_is_not_taken(tmp_path: Path) -> None:
    rates = found_in(tmp_path, record(status="failed"))
    assert rates.source("gradient", "fp16").startswith("modelled")


def test_no_folder_no_records(tmp_path: Path) -> None:
    assert recorded(tmp_path / "none", HALF, "v100", "resnet18") is HALF
