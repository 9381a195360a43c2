"""Fixtures that several packages' tests share."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import folded
from tests.once import made_once


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thin", type=int, metavar="N", help="run at most N cases of each test, at equal distances"
    )
    parser.addoption(
        "--renew-surface",
        action="store_true",
        help="tests/test_surface.py: take over what it finds",
    )


def pytest_configure(config: pytest.Config) -> None:
    folded.thin = config.getoption("--thin")
    gc.set_threshold(50_000, 20, 20)  # a search every 700 objects took one second in twenty
    os.fsync = os.fstat  # type: ignore[assignment]  # no test cuts the power: none waits for the disk


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests first: workers take whole files, and a long one begun last would keep one alone at work."""
    most = config.getoption("--thin")
    if most is not None:
        _thin(config, items, most)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What has been collected lives to the end: no search for garbage looks at it again."""
    gc.collect()
    gc.freeze()


def _thin(config: pytest.Config, items: list[pytest.Item], most: int) -> None:
    """Deselect all but a fixed sample of each test's cases."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.split("[")[0]].append(item)
    kept = set()
    for every in cases.values():
        kept.update(id(every[number]) for number in folded.sample(len(every), most))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


@pytest.fixture(autouse=True)
def ctrl_c_is_heeded() -> Iterator[None]:
    """A background job of a shell ignores SIGINT, and so would every process that its tests start and interrupt."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def lines_are_still_counted() -> Iterator[None]:
    """pyautoattack's checks end with no tracer at all, which would end the coverage of all later tests."""
    tracer = sys.gettrace()
    yield
    if sys.gettrace() is not tracer:
        sys.settrace(tracer)


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

    def unpack(folder: Path) -> None:
        command = [sys.executable, real_data / "unpack.py", "cifar10", folder / "cifar10.npz"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return made_once(tmp_path_factory, "cifar10", unpack) / "cifar10.npz"


@pytest.fixture(scope="session")
def imagenette(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of ImageNet, 150 training and 50 test images each, unpacked once a session."""
    file = real_data / "imagenette224-subset.zip"
    folder = made_once(tmp_path_factory, "imagenette", zipfile.ZipFile(file).extractall)
    (train,) = folder.rglob("train")
    return train.parent


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Made-up JPEG files of many sizes: train/ of 5, 3 and 4 images in classes a, b and c, val/ of 2, 1 and 2."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part, counts in (("train", (5, 3, 4)), ("val", (2, 1, 2))):
        for name, count in zip("abc", counts, strict=True):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(20, 60, 2)
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return tmp_path / "images"
