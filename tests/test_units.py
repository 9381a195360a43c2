"""Distances are floats on the [0, 1] scale, typed and shown in units of 1/255."""

from __future__ import annotations

import pytest

from iaat_fast import units


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8 / 255),
        ("8/255", 8 / 255),
        (" 76.5 ", 0.3),
        ("1/4", 0.25),
        ("0", 0.0),
        ("0/255", 0.0),
    ],
)
def test_a_number_is_of_units_and_a_fraction_is_itself(text: str, value: float) -> None:
    assert units.from_text(text) == value


@pytest.mark.parametrize("text", ["eight", "8/0", "8/", "/255", "8/255/2", ""])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{text}', expected a number of units of 1/255"):
        units.from_text(text)


@pytest.mark.parametrize("text", ["8", "76.5", "1.9", "0.25", "0", "255"])
def test_what_is_shown_is_read_back(text: str) -> None:
    assert units.to_text(units.from_text(text)) == text


def test_numbers_of_the_unit_scale_are_suspected() -> None:
    said = units.too_small("--eps", units.from_text("0.03"), units.SMALL_RADIUS)
    assert said is not None
    assert said.startswith("--eps: 0.03/255")
    assert said.endswith("that is 7.65")
    for text in ("0", "0.5", "8"):
        assert units.too_small("--eps", units.from_text(text), units.SMALL_RADIUS) is None


@pytest.mark.parametrize(
    ("value", "lo", "hi", "expected"),
    [
        (8, 0.0, 1.0, "at most 1, the width of [0, 1]; 8/255?"),
        (1.5, -1.0, 0.0, "at most 1, the width of [-1, 0]; 1.5/255?"),
        (300, 0.0, 1.0, "at most 1, the width of [0, 1]"),
        (float("inf"), 0.0, 1.0, "at most 1, the width of [0, 1]"),
        (1.0, 0.0, 1.0, None),
        (2.0, -1.0, 1.0, None),
    ],
)
def test_a_distance_is_at_most_the_width_of_the_box(
    value: float, lo: float, hi: float, expected: str | None
) -> None:
    assert units.beyond(value, lo, hi) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((13867.3, "13,870"), (1.2345e7, "12,340,000"), (999.96, "1,000"), (1234.5, "1,234")),
        *((0.5, "0.5"), (0.0, "0"), (64.0, "64"), (-3.14159, "-3.142"), (1.2345e-6, "0.000001234")),
    ],
)
def test_a_number_is_written_to_four_digits_without_an_exponent(value: float, text: str) -> None:
    assert units.significant(value) == text


def test_an_attack_has_a_name_and_a_key_with_its_radius_in_units_of_1_255() -> None:
    attack = {"steps": 10, "restarts": 5, "eps": 76.5 / 255}
    assert units.attack_name(attack) == "PGD-10 × 5 at ε = 76.5/255"
    assert units.attack_name({**attack, "targeted": "random"}).startswith("targeted PGD-10 × 5 at")
    assert units.attack_key(10, 5, 76.5 / 255) == "pgd10x5-eps76.5"
