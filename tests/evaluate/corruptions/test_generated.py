"""Corruptions made on the fly from real images: all 19, reproducible, and said to be generated."""

from __future__ import annotations

import io
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from iaat_fast.data import Split
from iaat_fast.evaluate.corruptions import (
    ALL,
    MAIN,
    GeneratedCorruptions,
    measure_corruptions,
    open_corruptions,
    summarise,
)
from tests.forked import Forked

DRAWN = [name for name in ALL if name not in (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate"
)]  # fmt: skip
"""Those with randomness in them."""


@pytest.fixture(scope="session")
def cifar10(real_data: Path) -> Split:
    """The first four test images of CIFAR-10."""
    pytest.importorskip("imagecorruptions")
    read_pack = runpy.run_path(str(real_data / "unpack.py"))["read_pack"]
    images, labels = read_pack(real_data / "cifar10-test.npz")
    return Split(torch.from_numpy(images[:4].copy()), torch.from_numpy(labels[:4].copy()))


@pytest.fixture(scope="session")
def photograph(real_data: Path) -> Split:
    """One 224x224 image of ImageNet."""
    from PIL import Image

    pytest.importorskip("imagecorruptions")
    with zipfile.ZipFile(real_data / "imagenette224-subset.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".JPEG"))
        image = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
    return Split(torch.from_numpy(image[None]), torch.zeros(1, dtype=torch.int64))


def difference(a: Any, b: Any) -> float:
    """Mean distance of two images in grey levels."""
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_cifar_images_are_corrupted(cifar10: Split, name: str) -> None:
    generated = GeneratedCorruptions(cifar10)
    clean = cifar10.images.numpy()
    change = []
    for severity in (1, 5):
        made = [generated.images(name, severity)[i] for i in range(2)]
        assert all(image.dtype == np.uint8 and image.shape == (32, 32, 3) for image in made)
        assert len({image.tobytes() for image in made}) == 2
        change.append(np.mean([difference(image, clean[i]) for i, image in enumerate(made)]))
    assert change[1] > 2, "an image at severity 5 is visibly another one"
    assert change[1] > change[0] or name == "saturate", "saturate is towards grey at first"


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "glass_blur", "frost", "fog", "elastic_transform"]
)
def test_images_of_imagenets_size_are_corrupted(photograph: Split, name: str) -> None:
    image = GeneratedCorruptions(photograph).images(name, 3)[0]
    assert image.dtype == np.uint8
    assert image.shape == (224, 224, 3)
    assert difference(image, photograph.images[0].numpy()) > 2


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_follows_seed_severity_and_sample(cifar10: Split, name: str) -> None:
    same = Split(cifar10.images[:1].repeat(3, 1, 1, 1), cifar10.labels[:1].repeat(3))
    made = GeneratedCorruptions(same, seed=1).images(name, 4)
    again = GeneratedCorruptions(same, seed=1).images(name, 4)
    other = GeneratedCorruptions(same, seed=2).images(name, 4)
    # In any order, and whatever has been drawn from NumPy's generator in between.
    np.random.random(5)
    backwards = [again[i] for i in (2, 1, 0)]
    forwards = [made[i] for i in (0, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards[::-1], strict=True))
    if name != "spatter":  # on a small image no drop may fall, on several
        assert len({image.tobytes() for image in forwards}) == 3
        assert not np.array_equal(other[0], made[0])


@pytest.mark.slow
def test_another_process_makes_the_same_images(cifar10: Split, tmp_path: Path) -> None:
    names = ("impulse_noise", "snow")
    np.save(tmp_path / "images.npy", cifar10.images.numpy())
    (tmp_path / "making.py").write_text(f"""
import numpy as np, torch
from iaat_fast.data import Split
from iaat_fast.evaluate.corruptions import GeneratedCorruptions
images = torch.from_numpy(np.load({str(tmp_path / "images.npy")!r}))
generated = GeneratedCorruptions(Split(images, torch.zeros(len(images), dtype=torch.int64)), seed=3)
np.save({str(tmp_path / "made.npy")!r}, np.stack([generated.images(n, 5)[i] for n in {names} for i in (3, 0)]))
""")
    process = Forked("making", cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    generated = GeneratedCorruptions(cifar10, seed=3)
    here = np.stack([generated.images(name, 5)[i] for name in names for i in (3, 0)])
    assert np.array_equal(np.load(tmp_path / "made.npy"), here)


def test_numpys_own_generator_is_left_as_it_was(cifar10: Split) -> None:
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    for name in ALL:
        GeneratedCorruptions(cifar10).images(name, 2)[0]
    assert np.array_equal(np.random.random(3), expected)


class Bright(nn.Module):
    """Two classes, by the mean of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3)) - 0.47
        return torch.stack([-mean, mean], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2)])
def test_verdicts_depend_neither_on_batches_nor_on_processes(
    cifar10: Split, batch_size: int, workers: int
) -> None:
    split = Split(cifar10.images, torch.tensor([0, 1, 0, 1]))
    generated = GeneratedCorruptions(split, names=("snow", "gaussian_noise"))
    whole = list(measure_corruptions(Bright(), generated))
    parts = list(measure_corruptions(Bright(), generated, batch_size=batch_size, workers=workers))
    assert [one.row["corruption"] for one in parts] == ["snow", "gaussian_noise"]
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a.verdicts, b.verdicts)
        assert a.row["severities"] == b.row["severities"]


def test_rows_and_summary_say_that_they_are_generated(cifar10: Split) -> None:
    generated = GeneratedCorruptions(cifar10, names=("fog",))
    rows = [one.row for one in measure_corruptions(Bright(), generated)]
    assert [row["source"] for row in rows] == ["generated"]
    summary = summarise(rows, generated)
    assert (summary["source"], summary["types"], summary["complete"]) == ("generated", 1, True)
    assert summary["mce"] is None


def test_they_are_generated_where_no_published_folder_is(cifar10: Split, tmp_path: Path) -> None:
    images = open_corruptions(cifar10, dataset="cifar10", data=tmp_path / "cifar10.npz", seed=5)
    assert isinstance(images, GeneratedCorruptions)
    assert images.names == ALL
    assert open_corruptions(cifar10, dataset="imagenet").names == MAIN


def test_where_no_drop_falls_the_image_stays(cifar10: Split) -> None:
    # 1.5 % of CIFAR images at severity 1; the library itself divides by 0 there and returns black.
    same = Split(cifar10.images[:1].repeat(200, 1, 1, 1), cifar10.labels[:1].repeat(200))
    made = GeneratedCorruptions(same).images("spatter", 1)
    images = [made[i] for i in range(200)]
    assert all(image.any() for image in images)
    assert any(np.array_equal(image, same.images[0].numpy()) for image in images)


@pytest.mark.parametrize(
    ("shape", "said"), [((8, 8, 1), "got 8x8 with 1 channel$"), ((28, 32, 3), "got 28x32 with 3")]
)
def test_images_that_cannot_be_corrupted_are_refused(shape: tuple[int, ...], said: str) -> None:
    split = Split(torch.zeros(2, *shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"RGB images of at least 32x32, {said}"):
        GeneratedCorruptions(split)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from iaat_fast.evaluate.corruptions.generated import library

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    split = Split(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"pip install 'iaat-fast\[corruptions\]'"):
        GeneratedCorruptions(split)
