"""The kernel benchmark: what a run leaves behind, and that a wrong result is never timed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.__main__ import main
from benchmarks.kernels import measuring, providers
from benchmarks.kernels.cases import LAYERS, OPS, STEM, Case, LayerProblem, Problem, make_cases
from benchmarks.kernels.measuring import measure as measure_case
from benchmarks.record import Row
from iaat_fast.ops import reference

CPU = torch.device("cpu")
SMALL = {
    "images": Problem("small", (3, 3, 8, 8), 3, torch.float32, False),
    "logits": Problem("small", (4, 10), 3, torch.float32, False),
    "pixels": Problem("small", (3, 3, 8, 8), 1, torch.uint8, False),
    "stem": Problem("small", (3, 3, 8, 8), 3, torch.bfloat16, False, outputs=16),
    "layer": LayerProblem("small", (3, 4, 2, 2), 1, torch.float32, False, branch=True),
}


def small_case(op: str) -> Case:
    kind = {"random_crop_flip": "pixels", "ce_cotangent": "logits", "select_epsilon_": "logits"}
    kind |= dict.fromkeys(STEM, "stem")
    kind |= dict.fromkeys(LAYERS, "layer")
    return Case(op, SMALL[kind.get(op, "images")])


def measured(op: str, *names: str) -> dict[str, Row]:
    rows = measure_case(small_case(op), names, CPU, seconds=0.001, rounds=3)
    return {row.provider: row for row in rows}


def planted(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """A backend called triton of the given functions."""
    module = ModuleType("planted")
    vars(module).update(functions)
    found = providers._module
    monkeypatch.setattr(
        providers,
        "_module",
        lambda name, device: module if name == "triton" else found(name, device),
    )


@pytest.mark.parametrize("op", OPS)
def test_reference_and_eager_are_measured(op: str) -> None:
    for name, row in measured(op, "reference", "eager").items():
        assert (row.status, row.detail) == ("ok", ""), name
        assert row.n == 3
        assert row.p50 is not None
        rate = row.figures["bytes"] / row.p50 / 1e9
        assert row.figures["gigabytes_per_second"] == pytest.approx(rate)
        assert row.figures["share_of_copy"] > 0
        assert not {"launches", "graph_s"} & row.figures.keys()


@pytest.mark.parametrize(
    ("op", "moved"),
    [
        ("pgd_step_linf_", 4 * 576 * (3 * 3 + 1) + 2 * 9 * 4 + 2 * 8),
        ("project_linf", 4 * 576 * (2 * 3 + 1) + 9 * 4),
        ("random_start_linf", 4 * 576 * (3 + 1) + 9 * 4 + 3 * 8 + 3 * 8),
        ("ce_cotangent", 2 * 4 * 120 + 4 * 8),
        ("select_epsilon_", 4 * 120 + 4 * (8 + 8) + 4 * (4 + 4 + 4 + 8)),
        ("random_crop_flip", 576 * (1 + 4) + 3 * 8 + 2 * 8),
        ("stem_conv_relu", 4 * 1728 + 2 * 16 * 576 + 2 * 16 * 28 + 2 * 3 * 4),
        (
            "stem_conv_step_",
            4 * 2 * 1728 + 2 * 16 * 576 + 4 * 576 + 2 * 16 * 27 + 2 * 9 * 4 + 2 * 8,
        ),
        ("relu_backward_", 4 * 48 * (3 + 1)),
        ("scale_shift_relu", 4 * 48 * (2 + 2) + 2 * 4 * 4),
        ("scale_shift_relu_backward_", 4 * 48 * (3 + 1) + 4 * 4),
    ],
)
def test_the_bytes_are_the_fewest_possible(op: str, moved: int) -> None:
    """3 images of 192 elements, 576 in all, or 4 rows of 10 logits; 3 candidates; and the values per row.

    The stem's 9 images have 576 pixels, of 16 features.
    A layer has 48 elements and 4 channels, and a branch joins it.
    """
    case = small_case(op)
    assert case.moved(case.arguments(CPU, seed=0)) == moved


def test_a_wrong_backend_is_listed_as_wrong_and_never_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def off_by_a_bit(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
        right = reference.project_linf(x_adv, x, eps, lo, hi)
        right.view(-1)[5] = right.view(-1)[5].nextafter(torch.tensor(2.0))
        return right

    planted(monkeypatch, project_linf=off_by_a_bit)
    row = measured("project_linf", "triton", "reference")["triton"]
    assert row.status == "wrong"
    assert "1 of 1728 entries differ" in row.detail
    assert row.p50 is None
    assert "share_of_copy" not in row.figures


@pytest.mark.parametrize(
    ("op", "position"),
    [
        *(("pgd_step_linf_", 0), ("pgd_step_linf_", 8), ("select_epsilon_", 0)),
        *(("stem_conv_step_", 0), ("stem_conv_step_", 9)),
        *((op, 0) for op in LAYERS),
    ],
)
def test_a_backend_that_leaves_an_argument_unwritten_is_wrong(
    monkeypatch: pytest.MonkeyPatch, op: str, position: int
) -> None:
    def writes_elsewhere(*args: Any) -> Any:
        copies = list(args)
        copies[position] = args[position].clone()
        return getattr(reference, op)(*copies)

    planted(monkeypatch, **{op: writes_elsewhere})
    assert measured(op, "triton")["triton"].status == "wrong"


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_baseline_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = providers._expression(small_case(op))

    def doubled(*args: Any) -> Any:
        result = right(*args)
        return (2 * result[0] + 1, *result[1:]) if isinstance(result, tuple) else 2.5 * result + 1

    monkeypatch.setattr(providers, "_expression", lambda case: doubled)
    assert measured(op, "eager")["eager"].status == "wrong"


def test_a_backend_that_breaks_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: Any) -> None:
        raise RuntimeError("project_linf: CUDA error:\n out of luck")

    planted(monkeypatch, project_linf=breaks)
    rows = measured("project_linf", "triton", "reference")
    assert rows["triton"].status == "failed"
    assert rows["triton"].detail == "RuntimeError: project_linf: CUDA error: out of luck"
    assert rows["reference"].status == "ok"


def test_a_backend_without_the_op_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    row = measured("project_linf", "triton")["triton"]
    assert (row.status, row.detail) == ("missing", "triton has no project_linf")


def test_the_sizes_of_a_full_run() -> None:
    cases = make_cases(OPS, (torch.float32, torch.bfloat16), quick=False, on_gpu=True)
    shapes = {(c.problem.shape, c.problem.k) for c in cases}
    assert {
        ((128, 3, 32, 32), 1),
        ((128, 3, 32, 32), 3),
        ((32, 3, 224, 224), 1),
        ((64, 3, 224, 224), 3),
        ((128, 1000), 3),
    } <= shapes
    flat = [c.problem for c in cases if c.op == "project_linf" and len(c.problem.shape) == 2]
    assert sorted(p.numel * p.dtype.itemsize // 2**20 for p in flat) == [64, 64, 1024, 1024]
    assert len(cases) == len({c.title for c in cases})


def test_layers_without_a_branch_move_less() -> None:
    problem = dataclasses.replace(SMALL["layer"], branch=False)
    sizes = {op: (case := Case(op, problem)).moved(case.arguments(CPU, seed=0)) for op in LAYERS}
    tensor, values = 4 * 48, 4 * 4
    assert sizes == {
        "relu_backward_": 3 * tensor,
        "scale_shift_relu": 2 * tensor + 2 * values,
        "scale_shift_relu_backward_": 3 * tensor + values,
    }


def test_a_backend_that_does_not_load_is_told_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--device", "cpu", "--quick", "--ops", "ce_cotangent", "--dtypes", "float32"]
    assert main(["kernels", *argv, "--record", str(tmp_path / "it.json")]) == 0
    rows = json.loads((tmp_path / "it.json").read_text())["rows"]
    assert [row["provider"] for row in rows[:4]] == ["native", "triton", "reference", "eager"]
    assert {row["metric"] for row in rows[4:]} == {kernels.FASTER}
    printed = capsys.readouterr().out
    assert "missing: Triton runs on CPU tensors only with TRITON_INTERPRET=1" in printed


def test_a_run_out_of_time_names_what_it_left_out(tmp_path: Path) -> None:
    argv = ["--device", "cpu", "--quick", "--time-limit", "-1"]
    assert main(["kernels", *argv, "--record", str(tmp_path / "it.json")]) == 0
    result = json.loads((tmp_path / "it.json").read_text())
    assert result["rows"] == []
    assert "ce_cotangent 128x10 float32" in result["left_out"]


def test_a_case_that_breaks_as_a_whole_is_told_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(case: Case, *args: Any, **keywords: Any) -> list[Row]:
        if case.op == "ce_cotangent":
            raise RuntimeError("out of\nmemory")
        return measure_case(case, *args, **keywords)

    monkeypatch.setattr(kernels, "measure_case", out_of_memory)
    argv = ["--device", "cpu", "--quick", "--dtypes", "float32", "--backends", "native"]
    argv += ["--ops", "ce_cotangent", "select_epsilon_", "--record", str(tmp_path / "it.json")]
    assert main(["kernels", *argv]) == 1
    broken, fine, *_ = json.loads((tmp_path / "it.json").read_text())["rows"]
    assert (broken["status"], broken["detail"]) == ("failed", "RuntimeError: out of memory")
    assert fine["status"] == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "--device", "cuda"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def row(backend: str, p50: float | None = None, **changes: Any) -> Row:
    problem = dataclasses.replace(SMALL["images"], label=changes.pop("problem", "small"))
    found = measuring._empty(Case("project_linf", problem), backend)
    found.status, found.p50 = changes.pop("status", "ok"), p50
    found.figures |= changes
    return found


def test_the_faster_backend_is_that_of_the_problems_both_were_measured_at() -> None:
    rows = kernels.faster(
        [
            row("native", 9.0, graph_s=2.0),
            row("triton", 8.0, graph_s=4.0),
            row("native", 1.0, problem="only native"),
            row("eager", 0.1),
            row("native", 30.0, graph_s=1.0, bandwidth_bound=True),
            row("triton", 20.0, graph_s=9.0, bandwidth_bound=True),
            row("reference", status="wrong", bandwidth_bound=True),
        ]
    )
    assert [(r.case, r.provider, r.p50, r.figures["problems"]) for r in rows] == [
        ("project_linf, small", "native", 1.0, 1),
        ("project_linf, small", "triton", pytest.approx(2.0), 1),
        ("project_linf, bandwidth-bound", "native", pytest.approx(1.5), 1),
        ("project_linf, bandwidth-bound", "triton", 1.0, 1),
    ]
