"""Images for the runs of `made.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.report.made import TEST, TRAIN


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
