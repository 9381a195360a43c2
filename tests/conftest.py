"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data named by IAAT_FAST_DATA; the test is skipped without it."""
    folder = os.environ.get("IAAT_FAST_DATA")
    if not folder:
        pytest.skip("IAAT_FAST_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar10_npz(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10, 50,000 + 10,000 images, unpacked once a session into an .npz (about 10 s)."""
    file = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    unpack = [sys.executable, str(real_data / "unpack.py"), "cifar10", str(file)]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL)
    return file
