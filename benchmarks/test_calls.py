"""`make bench`: the single calls that benchmarks name, timed by pytest-benchmark in groups of one thing each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import registry

CALLS = [
    pytest.param(case, call, id=f"{case}, {provider}")
    for name in registry.BENCHMARKS
    for case, providers in registry.calls(name).items()
    for provider, call in providers.items()
]


@pytest.mark.parametrize(("case", "call"), CALLS)
def test_call(benchmark: Any, case: str, call: Callable[[], object]) -> None:
    benchmark.group = case
    benchmark(call)
