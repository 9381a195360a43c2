"""A clock for tests of what benchmarks make of times."""

from __future__ import annotations

import pytest

from benchmarks import interleave


class Clock:
    """In place of `time`: only `sleep` takes any. On a busy machine a millisecond of the real one is often twenty."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What `interleave` times with."""
    clock = Clock()
    monkeypatch.setattr(interleave, "time", clock)
    return clock
