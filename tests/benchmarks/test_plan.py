"""The benchmark that holds plans against what a machine does."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import plan
from benchmarks.plan import check_step, configurations, fit_ring, table9
from benchmarks.recorded_steps import NETWORKS, UNEXPLAINED, expected, host_of
from iaat_fast.plan.hardware import Assumptions
from iaat_fast.plan.interconnect import ring
from iaat_fast.train import preset


def test_fit_finds_latency_and_bandwidth_of_a_ring() -> None:
    sizes = [4**k for k in range(3, 14)]
    latency, bandwidth = fit_ring(sizes, [ring(size, 2, 2e9, 7e-5) for size in sizes])
    assert latency == pytest.approx(7e-5, rel=1e-6)
    assert bandwidth == pytest.approx(2e9, rel=1e-6)


def test_times_that_do_not_grow_with_the_sizes_fit_no_bandwidth() -> None:
    with pytest.raises(ValueError, match="no bandwidth fits"):
        fit_ring([64, 4096], [2e-3, 1e-3])


def test_a_step_is_predicted_from_its_passes_and_its_own_share_of_fooled_samples() -> None:
    name = "digits, lazy"
    row = check_step(name, configurations(8)[name], steps=2)
    checked = row.figures
    per_image = checked["pass_seconds_per_image"]
    passes = {"gradient": 20 + 10 * checked["fooled"], "forward": 2 + checked["fooled"]}
    seconds = sum(passes[kind] * per_image[kind] for kind in passes) + per_image["update"]
    assert checked["predicted_s"] == pytest.approx(8 * seconds)
    assert checked["predicted_over_measured"] == checked["predicted_s"] / row.p50
    assert len(checked["measured_all_s"]) == 2


@pytest.mark.slow
def test_the_model_is_within_15_percent_of_what_an_h100_took() -> None:
    """Of every recorded step whose share of fooled samples is known, and of the attacks and updates in it."""
    found = list(expected(NETWORKS))
    checked = {each.case: each.predicted / each.measured for each in found if each.checks}
    assert sum(case.startswith("step ") for case in checked) == 9
    assert {case for case, ratio in checked.items() if not 0.85 < ratio < 1.15} == {*UNEXPLAINED}
    bounded = [each for each in found if each.bounds]
    assert len(bounded) == 4
    for each in bounded:  # of which the share of fooled samples is not known
        assert each.bounds is not None
        assert each.bounds[0] < each.measured < each.bounds[1], each.case
    # The host's time is that of the attacks that wait for it, and no step's.
    assert Assumptions().host == pytest.approx(host_of(found), rel=0.01)


@pytest.mark.slow
def test_hours_of_table_9_are_predicted_for_each_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program moves less than autograd, and half precision less than fp32."""

    def slim(name: str, **parts: Any) -> Any:
        model = {"name": "imagenet-resnet18", "width": 2}
        return preset(name, model=model, **parts)

    monkeypatch.setattr(plan, "preset", slim)
    (row,) = table9([50])
    hours = row.figures["predicted_h"]
    assert hours["fp16 program"] < hours["fp16 autograd"] < hours["fp32 autograd"]
    assert row.figures["published_h"] == 92
