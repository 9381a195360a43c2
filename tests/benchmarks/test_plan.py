"""The benchmark that holds plans against what a machine does."""

from __future__ import annotations

import pytest

from benchmarks.plan import _solve, check_step, configurations, fit_ring
from iaat_fast.plan.communication import ring


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
