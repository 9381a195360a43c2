"""Run folders in the states that training and evaluation leave them in, made without either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import write_json
from iaat_fast.sweep import driver
from iaat_fast.sweep.grid import Run

RESULTS = {"natural_accuracy": 0.9, "robust_accuracy": 0.5, "eps_mean": 0.3, "samples": 360}


@pytest.fixture(autouse=True)
def jobs_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "POLL_S", 0.01)


@pytest.fixture
def begin() -> Callable[[Run], RunFolder]:
    """Leaves the folder of a training that was started."""

    def make(run: Run) -> RunFolder:
        folder = RunFolder(run.folder)
        folder.create(run.config.to_dict(), {})
        return folder

    return make


@pytest.fixture
def train(begin: Callable[[Run], RunFolder]) -> Callable[[Run], RunFolder]:
    """Leaves the folder of a training that is finished."""

    def make(run: Run) -> RunFolder:
        folder = begin(run)
        folder.save_results(RESULTS)
        return folder

    return make


@pytest.fixture
def evaluate(train: Callable[[Run], RunFolder]) -> Callable[..., None]:
    """Leaves a run with the record of an evaluation by a suite."""

    def make(
        run: Run,
        suite: str,
        *parts: str,
        complete: bool = True,
        samples: int = 360,
        seed: int = 0,
        rule: str = "last",
    ) -> None:
        folder = RunFolder(run.folder)
        if not folder.results_path.exists():
            train(run)
        record: dict[str, Any] = {
            "schema": 1,
            "suite": suite,
            "rule": rule,
            "complete": complete,
            "seed": seed,
            "data": {"name": "digits", "samples": samples},
            "measurements": [{"key": part, "part": part} for part in parts],
        }
        name = f"{suite}-digits-{samples}-seed{seed}" + ("-any" if rule == "any" else "")
        path = folder.evaluation_dir / name / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)

    return make
