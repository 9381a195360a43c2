"""Collects the ratios that the benchmarks record and prints them at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import machine

_LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Put hardware, versions and commit into the file that --benchmark-json writes."""
    machine_info["iaat_fast"] = machine.describe()


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """record(text, **figures): print a line after the run and keep the figures with the benchmark."""

    def keep(text: str, **figures: float) -> None:
        benchmark.extra_info.update(figures)
        request.config.stash[_LINES].append(text)

    return keep


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash[_LINES]
    if lines:
        terminalreporter.section("side by side, interleaved in this process")
        for line in lines:
            terminalreporter.write_line(line)
        terminalreporter.write_line(", ".join(f"{k} {v}" for k, v in machine.describe().items()))
