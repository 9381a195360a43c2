"""The benchmark that holds plans against what a machine does."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import plan
from benchmarks.plan import _solve, check_step, configurations, fit_ring, table9
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


def test_share_of_the_peak_is_solved_for() -> None:
    assert _solve(lambda share: 5 + 2 / share, 92) == pytest.approx(2 / 87)


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
def test_of_table_9_what_is_fitted_is_marked_as_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hours that gave the rate do not check it."""

    def slim(name: str, **parts: Any) -> Any:
        return preset(name, model={"width": 2}, **parts)

    monkeypatch.setattr(plan, "preset", slim)
    monkeypatch.setattr(plan, "TABLE9", {50: (64, 92), 101: (128, 78)})
    monkeypatch.setattr(plan, "_solve", lambda hours, wanted: 0.1)
    _, rows = table9([50, 101])
    assert [row.figures["fitted"] for row in rows] == [True, False]
