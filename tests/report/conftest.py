"""Images for the runs of `made.py`, a report of some of those, and a browser to look at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iaat_fast.report import build_report
from tests.once import made_once
from tests.report.browser import browser
from tests.report.made import TEST, TRAIN, save_checkpoint, save_run


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of small random images in ten classes."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    random = np.random.default_rng(0)

    def some(n: int) -> np.ndarray:
        return random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)

    np.savez(
        path,
        x_train=some(TRAIN),
        y_train=np.arange(TRAIN) % 10,
        x_test=some(TEST),
        y_test=np.arange(TEST) % 10,
    )
    return path


@pytest.fixture(scope="session")
def built(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on runs that have something for Tables 1 and 4 and every figure; one of them was never evaluated."""

    def make(folder: Path) -> None:
        path = {"data__path": str(images)}
        iaat = save_run(folder / "iaat", "iaat", **path)
        save_checkpoint(iaat)
        runs = [
            iaat,
            save_run(folder / "cold", "iaat", natural=0.85, epsilon__warmup_epochs=0, **path),
            save_run(folder / "adv4", "adv", natural=0.78, robust=0.3, attack__eps=4 / 255, **path),
            save_run(folder / "adv8", "adv", natural=0.7, robust=0.42, **path),
            save_run(folder / "clean", "clean", natural=0.9, robust=0.0, **path),
            save_run(folder / "trades <b>&", "trades", natural=None, **path),
        ]
        report = build_report(runs, folder / "out")
        assert report.missing == ()

    return made_once(tmp_path_factory, "report-of-runs", make) / "out"


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window
