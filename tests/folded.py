"""Many small cases in one test: thousands of a millisecond each cost more to collect and report than to run."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Test = Callable[..., None]

thin: int | None = None
"""Run at most so many combinations, at equal distances: the option --thin."""


def sample(count: int, most: int | None) -> list[int]:
    """Of the numbers below count at most so many, at equal distances: the same ones every time."""
    chosen = count if most is None else min(most, count)
    return [number * count // chosen for number in range(chosen)]


def rotated(rows: Sequence[Any], columns: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Every row with every column, and with each pair one of the others in turn.

    Where no more others than rows and columns are there, each meets every row and every column: all pairs of values are
    tried, in as many cases as two of the three axes have.
    """
    return [
        (row, column, others[(i + j) % len(others)])
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]


def every(**axes: Iterable[Any] | Mapping[str, Any]) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize` over all combinations, within one test, whose failure names its combination.

    The values of an axis are its elements, or those of a mapping that names them.
    """
    named = {
        axis: list(
            values.items() if isinstance(values, Mapping) else ((value, value) for value in values)
        )
        for axis, values in axes.items()
    }
    combinations = list(itertools.product(*named.values()))

    def fold(test: Test) -> Test:
        @functools.wraps(test)
        def folded(**fixtures: Any) -> None:
            for number in sample(len(combinations), thin):
                combination = dict(zip(named, combinations[number], strict=True))
                try:
                    test(**fixtures, **{axis: value for axis, (_, value) in combination.items()})
                except BaseException as error:
                    names = [f"{axis} = {name}" for axis, (name, _) in combination.items()]
                    error.add_note(f"with {', '.join(names)}")
                    raise

        signature = inspect.signature(test)
        kept = [value for name, value in signature.parameters.items() if name not in named]
        assert len(kept) + len(named) == len(signature.parameters), (
            f"{test.__name__}: an argument is missing"
        )
        folded.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return folded

    return fold
