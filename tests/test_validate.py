"""Every rule of an argument, at both of its ends, in the one form of its message."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from iaat_fast import validate

number = partial(validate.number, "x")
share = partial(validate.number, "x", high=1.0)


@pytest.mark.parametrize(
    ("rule", "good", "bad", "expected"),
    [
        (partial(validate.integer, "x", least=1), [1, 2**70], [0, -1], "expected at least 1"),
        (partial(validate.int64, "x"), [-(2**63), 2**63 - 1], [2**63], "expected a number in -2"),
        (number, [0, 0.5, 1e300], [-1e-9, math.nan], "expected a number >= 0"),
        (number, [], [math.inf], "expected a number >= 0, finite"),
        (partial(number, above=True), [1e-9], [0, -1], "expected a number > 0"),
        (share, [0, 1], [-0.1, 1.1, math.inf], "expected a number in [0, 1]"),
        (partial(share, above=True), [1], [0], "expected a number in (0, 1]"),
        (partial(share, below=True), [0], [1], "expected a number in [0, 1)"),
        (partial(validate.distance, "x", lo=0, hi=0.5), [0, 0.5], [-1], "expected a number >= 0"),
        (
            partial(validate.distance, "x", lo=0, hi=0.5),
            [],
            [0.6],
            "expected at most 0.5, the width",
        ),
        (
            partial(validate.pixel_distance, "x"),
            [0, 1],
            [-0.1, math.nan],
            "/255, expected 0 to 255",
        ),
        (partial(validate.pixel_distance, "x"), [], [8], "2040/255, expected 0 to 255; 8/255?"),
        (
            partial(validate.pixel_distance, "x", positive=True),
            *([1e-9, 1], [0], "0/255, expected above 0, up to 255"),
        ),
    ],
)
def test_a_number_outside_its_range_is_named(
    rule: Callable[[object], None], good: list[object], bad: list[object], expected: str
) -> None:
    for value in good:
        rule(value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^x: ") as error:
            rule(value)
        assert expected in str(error.value)
    for value in (True, "1", None):
        with pytest.raises(TypeError, match=r"^x: .*expected a"):
            rule(value)


def test_one_of_some_values_is_of_their_type_and_the_nearest_is_named() -> None:
    known = (False, True, "random")
    for value in known:
        validate.choice("targeted", value, known)
    for value in (0, 1, None, "x"):
        with pytest.raises(
            ValueError, match=r"^targeted: .*, expected one of False, True, 'random'$"
        ):
            validate.choice("targeted", value, known)
    with pytest.raises(ValueError, match=r"'randm', expected one of .*; did you mean 'random'\?$"):
        validate.choice("targeted", "randm", known)


def test_bounds_that_cross_are_no_box() -> None:
    validate.box(0, 0)
    for lo, hi in ((1, 0), (math.nan, 1)):
        with pytest.raises(ValueError, match=f"^lo, hi: {lo}, {hi}, expected lo <= hi$"):
            validate.box(lo, hi)


def test_numbers_of_numpy_are_numbers() -> None:
    validate.integer("x", np.int64(2), 1)
    validate.number("x", np.float32(0.5), high=1.0)
    validate.number("x", np.int32(1), high=1.0)
    with pytest.raises(ValueError, match="x: 0, expected at least 1"):
        validate.integer("x", np.int64(0), 1)
    with pytest.raises(ValueError, match="x: nan, expected a number >= 0"):
        validate.number("x", np.float32(math.nan))
    for value in (np.bool_(True), np.float32(1), np.array(1)):
        with pytest.raises(TypeError, match="expected an int"):
            validate.integer("x", value, 1)
