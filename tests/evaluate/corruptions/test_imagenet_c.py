"""ImageNet-C trees: classes by sorted wnid, mCE, and damaged trees; on real photographs where there are any."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from iaat_fast.data import Split
from iaat_fast.evaluate.corruptions import (
    ALEXNET_ERRORS,
    MAIN,
    ImageNetC,
    measure_corruptions,
    open_corruptions,
    summarise,
)

WNIDS = ("n01440764", "n02102040", "n02979186")
PER_CLASS = 2
SAMPLES = PER_CLASS * len(WNIDS)


class ReadsTheGrey(nn.Module):
    """Class k is an image of grey value 40 + 50 k; any other says class 0."""

    def forward(self, x: Tensor) -> Tensor:
        number = ((x.mean((1, 2, 3)) * 255 - 40) / 50).round().long()
        return nn.functional.one_hot(number.clamp(0, 2), 3).float()


def right_at(name: str, severity: int) -> int:
    return (MAIN.index(name) + 2 * severity) % (SAMPLES + 1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """15 corruptions of six images; the first `right_at` of them show their class, the others the next one."""
    root = tmp_path / "ImageNet-C"
    greys = []
    for k in range(3):
        with io.BytesIO() as file:
            Image.new("RGB", (16, 16), (40 + 50 * k,) * 3).save(file, "JPEG")
            greys.append(file.getvalue())
    for name in MAIN:
        for severity in range(1, 6):
            for number in range(SAMPLES):
                label, which = divmod(number, PER_CLASS)
                right = number < right_at(name, severity)
                folder = root / name / str(severity) / WNIDS[label]
                folder.mkdir(parents=True, exist_ok=True)
                shown = greys[label if right else (label + 1) % 3]
                (folder / f"val_{which}.JPEG").write_bytes(shown)
    return root


def test_accuracies_and_mce_are_exact(tree: Path) -> None:
    images = ImageNetC(tree)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    rows = [one.row for one in measure_corruptions(ReadsTheGrey(), images, batch_size=4)]
    ratios = []
    for row in rows:
        expected = [right_at(row["corruption"], severity) for severity in range(1, 6)]
        assert [one["correct"] for one in row["severities"]] == expected
        ratios.append((1 - sum(expected) / (5 * SAMPLES)) / ALEXNET_ERRORS[row["corruption"]])
    summary = summarise(rows, images)
    assert summary["mce"] == pytest.approx(100 * sum(ratios) / 15)
    assert (summary["types"], summary["complete"], summary["source"]) == (15, True, "official")


def test_a_limited_tree_takes_images_of_the_classes_in_turn(tree: Path) -> None:
    images = ImageNetC(tree, limit=4)
    assert images.labels.tolist() == [0, 1, 2, 0]
    (one,) = measure_corruptions(ReadsTheGrey(), images, done=MAIN[1:])
    # In the tree's own order these are the images 0, 2, 4 and 1.
    expected = [[n < right_at(MAIN[0], s) for n in (0, 2, 4, 1)] for s in range(1, 6)]
    assert one.verdicts.tolist() == expected


@dataclass(frozen=True)
class Files(Split):
    """A split that names its files, as image folders do."""

    files: tuple[bytes, ...] = ()


def test_images_are_found_by_the_names_of_the_clean_ones(tree: Path) -> None:
    files = tuple(f"{WNIDS[k]}/val_{i}.JPEG".encode() for k, i in ((2, 1), (0, 0), (1, 1)))
    whole = clean([2, 0, 1])
    images = ImageNetC(tree, Files(whole.images, whole.labels, files))
    assert images.labels.tolist() == [2, 0, 1]
    (one,) = measure_corruptions(ReadsTheGrey(), images, done=MAIN[1:])
    expected = [[n < right_at(MAIN[0], s) for n in (5, 0, 3)] for s in range(1, 6)]
    assert one.verdicts.tolist() == expected
    with pytest.raises(ValueError, match=r"1 of 3 test images are not there, .* n01440764/other"):
        ImageNetC(tree, Files(whole.images, whole.labels, (*files[:2], b"n01440764/other.JPEG")))
    with pytest.raises(ValueError, match="3 of 3 labels are not those of the test split"):
        ImageNetC(tree, Files(whole.images, (whole.labels + 1) % 3, files))


def test_images_of_another_size_are_resized(tree: Path) -> None:
    images = ImageNetC(tree, size=8)
    assert images.images("fog", 1)[0].shape == (8, 8, 3)
    (one,) = measure_corruptions(ReadsTheGrey(), images, done=MAIN[1:])
    assert one.verdicts.sum(1).tolist() == [right_at(MAIN[0], severity) for severity in range(1, 6)]


def clean(labels: list[int]) -> Split:
    return Split(torch.zeros(len(labels), 16, 16, 3, dtype=torch.uint8), torch.tensor(labels))


def test_the_labels_must_be_those_of_the_clean_images(tree: Path) -> None:
    images = open_corruptions(clean([0, 0, 1, 1]), dataset="imagenet", folder=tree)
    assert isinstance(images, ImageNetC)
    assert images.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="1 of 4 labels are not those of the test split"):
        open_corruptions(clean([0, 0, 1, 2]), dataset="imagenet", folder=tree)
    with pytest.raises(ValueError, match="6 images per severity, the test split has 7"):
        open_corruptions(clean([0, 0, 1, 1, 2, 2, 2]), dataset="imagenet", folder=tree)


def test_damaged_corruptions_are_named_and_the_others_measured(tree: Path) -> None:
    shutil.rmtree(tree / "fog")
    shutil.rmtree(tree / "snow" / "4")
    shutil.rmtree(tree / "frost" / "2" / WNIDS[1])
    (tree / "contrast" / "5" / WNIDS[2] / "val_1.JPEG").unlink()
    (tree / "pixelate" / "1" / WNIDS[0] / "val_0.JPEG").rename(
        tree / "pixelate" / "1" / WNIDS[0] / "val_9.JPEG"
    )
    for file in (tree / "brightness" / "3" / WNIDS[0]).iterdir():
        file.unlink()
    damaged = tree / "glass_blur" / "3" / WNIDS[1] / "val_1.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:100])
    images = ImageNetC(tree)
    rows = [one.row for one in measure_corruptions(ReadsTheGrey(), images)]
    summary = summarise(rows, images)
    assert summary["types"] == len(rows) == 8
    assert not summary["complete"]
    missing = dict(text.split(": ", 1) for text in summary["missing"])
    assert missing["fog"] == "fog/1: missing"
    assert missing["snow"] == "snow/4: missing"
    assert missing["frost"] == f"frost/2: class {WNIDS[1]} is missing"
    assert missing["contrast"] == "contrast/5: 5 images, 6 elsewhere"
    assert missing["pixelate"] == f"pixelate/1: {WNIDS[0]}/val_9.JPEG is not elsewhere"
    assert missing["brightness"].startswith("brightness/3: ")
    assert WNIDS[0] in missing["brightness"]
    assert missing["glass_blur"].startswith(f"{damaged}: not a readable image")
    assert summary["mce"] is not None


def test_a_damaged_image_is_named_across_processes(tree: Path) -> None:
    damaged = tree / "fog" / "1" / WNIDS[0] / "val_1.JPEG"
    damaged.write_bytes(b"not found")
    images = ImageNetC(tree)
    assert not list(
        measure_corruptions(ReadsTheGrey(), images, done=set(MAIN) - {"fog"}, workers=1)
    )
    assert images.missing["fog"].startswith(f"{damaged}: not a readable image")


def test_images_of_several_sizes_are_named(tree: Path) -> None:
    Image.new("RGB", (20, 20)).save(tree / "fog" / "2" / WNIDS[0] / "val_1.JPEG")
    images = ImageNetC(tree)
    assert not list(measure_corruptions(ReadsTheGrey(), images, done=set(MAIN) - {"fog"}))
    assert images.missing["fog"] == "images of several sizes: [16, 16, 3] and [20, 20, 3]"


def test_a_tree_without_a_whole_corruption_is_an_error(tree: Path) -> None:
    for name in MAIN:
        shutil.rmtree(tree / name / "5")
    with pytest.raises(FileNotFoundError, match="none of the 15 corruptions whole; gaussian_noise"):
        ImageNetC(tree)


def test_real_photographs_are_read_as_they_are(real_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(real_data / "imagenette224-subset.zip") as archive:
        names = [name for name in archive.namelist() if "/val/" in name and name.endswith(".JPEG")]
        chosen = [
            n
            for n in names
            if n.split("/")[-2] in (names[0].split("/")[-2], names[-1].split("/")[-2])
        ][::20]
        for name in chosen:
            for severity in range(1, 6):
                file = (
                    tmp_path / "jpeg_compression" / str(severity) / "/".join(name.split("/")[-2:])
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
    images = ImageNetC(tmp_path)
    assert images.names == ("jpeg_compression",)
    assert len(images.missing) == 14
    assert len(set(images.labels.tolist())) == 2
    first = min(p for p in (tmp_path / "jpeg_compression" / "1").rglob("*.JPEG"))
    pixels = np.asarray(Image.open(first).convert("RGB"))
    assert np.array_equal(images.images("jpeg_compression", 1)[0], pixels)
    assert pixels.shape == (224, 224, 3)
