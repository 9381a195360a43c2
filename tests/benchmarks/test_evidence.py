"""The test of the claim that IAAT lies beyond the curve of fixed radii, and the runs it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence.frontier import Verdicts, beyond, compare
from benchmarks.evidence.grids import DIGITS
from benchmarks.evidence.jobs import attacks, jobs_of
from benchmarks.evidence.write import analyse, markdown

CURVE = np.array([[90.0, 40.0], [80.0, 60.0]])


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((90, 40), 0),  # a vertex
        ((85, 50), 0),  # the middle of the line
        ((88, 53), 3),  # (85, 50) in reach by giving up 3 points of both
        ((80, 45), -15 / 3),  # (85, 50) is 5 points better in both
        ((95, 30), 5),  # to (90, 25), which is no better than (90, 40) anywhere
        ((70, 66), 6),
        ((0, 0), -60),  # (80, 60) is at least 60 points better in both
    ],
)
def test_beyond_is_what_a_point_can_lose_of_both_accuracies(point, distance):
    by_search = min(
        max(point[0] - q[0], point[1] - q[1])
        for q in CURVE[0] + np.linspace(0, 1, 100_001)[:, None] * (CURVE[1] - CURVE[0])
    )
    found = beyond(np.float64(point[0]), np.float64(point[1]), CURVE)
    assert found == pytest.approx(by_search, abs=2e-4)
    assert found == pytest.approx(distance)


def test_beyond_is_a_curve_of_its_own_for_every_replicate():
    random = np.random.default_rng(0)
    curves, points = random.uniform(0, 100, (5, 4, 2)), random.uniform(0, 100, (5, 2))
    together = beyond(points[:, 0], points[:, 1], curves)
    alone = [beyond(p[0], p[1], curve) for p, curve in zip(points, curves, strict=True)]
    np.testing.assert_allclose(together, alone)


def test_a_single_radius_is_a_curve():
    assert beyond(np.float64(70), np.float64(50), np.array([[60.0, 45.0]])) == 10


def _drawn(random, natural, robust, seeds=3, images=400):
    shape = (seeds, images)
    return Verdicts(natural=random.random(shape) < natural, robust=random.random(shape) < robust)


def test_a_setting_far_beyond_the_curve_is_found_and_one_inside_is_not():
    random = np.random.default_rng(1)
    fixed = {eps: _drawn(random, n, r) for eps, n, r in ((0.1, 0.9, 0.4), (0.2, 0.8, 0.6))}
    others = {"beyond": _drawn(random, 0.95, 0.75), "inside": _drawn(random, 0.7, 0.4)}
    _, found = compare(fixed, others, replicates=1000)
    assert found["beyond"].beyond.interval(tests=20)[0] > 0
    assert found["inside"].beyond.interval(tests=20)[1] < 0


def test_a_setting_on_the_curve_is_rarely_called_beyond_it():
    random = np.random.default_rng(2)
    wrong = 0
    for trial in range(100):
        fixed = {eps: _drawn(random, n, r) for eps, n, r in ((0.1, 0.9, 0.4), (0.2, 0.8, 0.6))}
        _, found = compare(fixed, {"on": _drawn(random, 0.85, 0.5)}, replicates=200, seed=trial)
        wrong += found["on"].beyond.interval()[0] > 0
    # 2.5 expected of a perfect interval; more than 8 of 100 has a chance of 0.1 %.
    assert wrong <= 8


def test_seeds_that_disagree_widen_the_interval_as_the_error_of_their_mean():
    images = 50
    natural = np.stack([np.full(images, value) for value in (True, True, False)])
    fixed = {0.1: Verdicts(natural=natural, robust=natural)}
    (point,) = compare(fixed, {}, replicates=20_000)[0].values()
    # The seeds' accuracies are 100, 100, 0: their standard deviation over the root of 3.
    assert point.natural.replicates.std() == pytest.approx(57.735 / 3**0.5, rel=0.02)


def test_what_cannot_be_compared_is_refused():
    one, other = (np.ones((2, n), dtype=bool) for n in (3, 4))
    with pytest.raises(ValueError, match=r"robust: \[2, 4\], expected the shape of natural"):
        Verdicts(natural=one, robust=other)
    with pytest.raises(ValueError, match="natural: float64"):
        Verdicts(natural=one.astype(float), robust=one)
    whole = Verdicts(natural=one, robust=one)
    with pytest.raises(ValueError, match="at least one radius"):
        compare({}, {"iaat": whole})
    with pytest.raises(ValueError, match=r"of \[3, 4\] images"):
        compare({0.1: whole}, {"iaat": Verdicts(natural=other, robust=other)})


def test_every_run_is_trained_then_evaluated_in_two_jobs(tmp_path: Path):
    runs = DIGITS.runs(tmp_path, (0, 1))
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 2 * len(DIGITS.settings)
    jobs = jobs_of(DIGITS, runs)
    assert len({job.name for job in jobs}) == len(jobs) == 3 * len(runs)
    assert {job.state for job in jobs} == {"new"}


def test_the_page_states_the_claim_for_every_attack_and_what_is_not_measured():
    random = np.random.default_rng(3)
    named = {s.name: _drawn(random, 0.8, 0.5) for s in DIGITS.settings if s.eps is not None}
    named["iaat-epsw51"] = _drawn(random, 0.95, 0.8)
    analysis = analyse(DIGITS, {attacks(DIGITS)[0]: named})
    facts = {"title": "T", "commands": ["c"], "measured": "M.", "seeds": 3, "images": 400}
    page = markdown(DIGITS, analysis, facts)
    assert "Beyond: IAAT, ε_w = 51. Inside: none. Undecided: none." in page
    assert "| IAAT, ε_w = 60 | not measured |" in page
