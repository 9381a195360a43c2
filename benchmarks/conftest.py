"""Collects the ratios that the benchmarks record and prints them at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine

_LINES = pytest.StashKey[list[str]]()
_FIGURES = pytest.StashKey[dict[str, dict[str, float]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", type=Path, help="write figures, hardware, versions and commit to this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES], config.stash[_FIGURES] = [], {}


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """record(text, **figures): print a line after the run and keep the figures with the benchmark."""

    def keep(text: str, **figures: float) -> None:
        benchmark.extra_info.update(figures)
        request.config.stash[_FIGURES][request.node.name] = figures
        request.config.stash[_LINES].append(text)

    return keep


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines, figures = config.stash[_LINES], config.stash[_FIGURES]
    if not lines:
        return
    terminalreporter.section("side by side, interleaved in this process")
    for line in lines:
        terminalreporter.write_line(line)
    measured_on = machine.describe()
    terminalreporter.write_line(", ".join(f"{name} {value}" for name, value in measured_on.items()))
    if path := config.getoption("--record"):
        path.write_text(json.dumps({"machine": measured_on, "figures": figures}, indent=2) + "\n")
