"""What commands say is one line that a person can read."""

from __future__ import annotations

import pytest

from iaat_fast.messages import significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((13867.3, "13,870"), (1.2345e7, "12,340,000"), (999.96, "1,000"), (1234.5, "1,234")),
        *((0.5, "0.5"), (0.0, "0"), (64.0, "64"), (-3.14159, "-3.142"), (1.2345e-6, "0.000001234")),
    ],
)
def test_a_number_is_written_to_four_digits_without_an_exponent(value: float, text: str) -> None:
    assert significant(value) == text
