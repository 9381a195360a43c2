"""Image folders: how they are listed, numbered, decoded and augmented, and what is wrong with them."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from iaat_fast import data
from iaat_fast.data import FolderSplit, UnreadableImage
from iaat_fast.data._torchvision import torchvision


def load(folder: Path, **how: object) -> data.ImageData:
    return data.load("imagenet", folder, workers=0, **how)  # type: ignore[arg-type]


def training_split(folder: Path, **how: object) -> FolderSplit:
    split = load(folder, **how).train
    assert isinstance(split, FolderSplit)
    return split


def augmented(split: FolderSplit, batches: list[list[int]], seeds: list[int]) -> list[Tensor]:
    made = split.batches([torch.tensor(b) for b in batches], seeds, augment=True)
    return [x for x, _, _ in made]


def test_samples_are_numbered_through_the_classes_in_turn(image_folder: Path) -> None:
    split = training_split(image_folder)
    names = [str(split.path(i).relative_to(image_folder / "train")) for i in range(len(split))]
    first = ["a/0.JPEG", "b/0.JPEG", "c/0.JPEG", "a/1.JPEG", "b/1.JPEG", "c/1.JPEG"]
    assert names[:6] == first
    assert names[6:] == ["a/2.JPEG", "b/2.JPEG", "c/2.JPEG", "a/3.JPEG", "c/3.JPEG", "a/4.JPEG"]
    assert split.labels.tolist() == ["abc".index(name[0]) for name in names]


def test_a_limit_takes_the_first_numbers_and_keeps_them_and_the_classes(image_folder: Path) -> None:
    whole, limited = load(image_folder), load(image_folder, limit=4)
    assert (len(limited.train), len(limited.test), limited.num_classes) == (4, 4, 3)
    for number in range(4):
        assert limited.train.path(number) == whole.train.path(number)  # type: ignore[attr-defined]
    assert torch.equal(
        data.fetch(limited.test, torch.arange(4))[0], data.fetch(whole.test, torch.arange(4))[0]
    )


@pytest.mark.parametrize("part", ["train", "test"])
def test_what_is_fetched_is_torchvisions_resize_and_centre_crop(
    image_folder: Path, part: str
) -> None:
    split = getattr(load(image_folder), part)
    index = torch.tensor([3, 0, 4])
    x, y = data.fetch(split, index)
    v2 = torchvision("transforms.v2")
    whole = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    expected = [whole(Image.open(split.path(i)).convert("RGB")) for i in index.tolist()]
    assert torch.equal(x, torch.stack(expected) / 255)
    assert torch.equal(y, split.labels[index])
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert data.fetch(split, index[:0])[0].shape == (0, 3, 224, 224)


def test_grey_and_cmyk_files_become_rgb(image_folder: Path) -> None:
    pixels = np.full((30, 30), 128, dtype=np.uint8)
    Image.fromarray(pixels).save(image_folder / "train/a/0.JPEG")
    Image.fromarray(pixels).convert("CMYK").save(image_folder / "train/b/0.JPEG")
    x, _ = data.fetch(load(image_folder).train, torch.tensor([0, 1]))
    assert x.shape == (2, 3, 224, 224)
    assert torch.allclose(x[0], torch.tensor(128 / 255))


def test_augmentation_follows_seed_and_sample_whatever_the_batch(image_folder: Path) -> None:
    split = training_split(image_folder)
    (together,) = augmented(split, [[4, 7, 2]], [11])
    again, other = augmented(split, [[7], [7]], [11, 12])
    assert torch.equal(again[0], together[1])
    assert not torch.equal(other[0], together[1])
    assert together.shape == (3, 3, 224, 224)
    assert 0 <= together.min() < together.max() <= 1


def test_augmentation_is_torchvisions_at_the_same_draws(image_folder: Path) -> None:
    split = training_split(image_folder)
    v2 = torchvision("transforms.v2")
    theirs = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    image = Image.open(split.path(5)).convert("RGB")
    for seed in (1, 2, 3):
        key = int(np.random.SeedSequence([seed, 5]).generate_state(1, np.uint64)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            expected = theirs(image)
        (x,) = augmented(split, [[5]], [seed])
        assert torch.equal((x[0] * 255).round().to(torch.uint8), expected)


def test_workers_give_the_bits_that_the_process_itself_gives(image_folder: Path) -> None:
    batches, seeds = [[0, 1, 2], [3, 4, 5], [6]], [1, 2, 3]
    split = training_split(image_folder)
    alone = augmented(split, batches, seeds)
    helped = augmented(FolderSplit(split.root, split.files, split.labels, 2), batches, seeds)
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_generator_stays_where_it_was(image_folder: Path, workers: int) -> None:
    split = training_split(image_folder)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augmented(FolderSplit(split.root, split.files, split.labels, workers), [[0, 1]], [1])
    assert torch.equal(torch.get_rng_state(), before)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


def test_a_bad_training_image_stops_with_its_name(image_folder: Path) -> None:
    cut_short(image_folder / "train/b/0.JPEG")
    split = training_split(image_folder)  # found only where it is needed
    with pytest.raises(UnreadableImage, match=r"train/b/0\.JPEG: not a readable image \(.+\)"):
        augmented(split, [[0, 1]], [1])


def test_a_bad_training_image_that_is_skipped_keeps_its_number(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = training_split(image_folder)
    expected = augmented(good, [[0, 2]], [1])[0]
    (image_folder / "train/b/0.JPEG").write_bytes(b"no image")
    split = training_split(image_folder, on_bad_image="skip")
    assert len(split) == len(good)
    batches = [torch.tensor([0, 1, 2]), torch.tensor([1])]
    with caplog.at_level(logging.WARNING, "iaat_fast"):
        (x, y, index), (none, _, numbers) = split.batches(batches, [1, 2], augment=True)
    assert index.tolist() == [0, 2]
    assert torch.equal(y, split.labels[index])
    assert torch.equal(x, expected)
    assert len(none) == len(numbers) == 0
    assert [r.getMessage().count("train/b/0.JPEG") for r in caplog.records] == [1]


def test_a_bad_test_image_is_found_when_the_data_is_loaded(image_folder: Path) -> None:
    cut_short(image_folder / "val/c/1.JPEG")
    with pytest.raises(UnreadableImage, match=r"val/c/1\.JPEG: not a readable image"):
        load(image_folder)
    test = load(image_folder, on_bad_image="skip").test
    assert len(test) == 4
    assert test.labels.tolist() == [0, 1, 2, 0]
    for file in (image_folder / "val").rglob("*.JPEG"):
        cut_short(file)
    with pytest.raises(ValueError, match=r"val: none of its 5 images can be decoded"):
        load(image_folder, on_bad_image="skip")


def test_large_test_sets_are_not_kept_decoded(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load(image_folder).test
    monkeypatch.setattr("iaat_fast.data.folder.CACHED_BYTES", 4 * 3 * 224 * 224)
    decoded = load(image_folder).test
    assert kept.pixels is not None  # type: ignore[attr-defined]
    assert decoded.pixels is None  # type: ignore[attr-defined]
    index = torch.tensor([4, 1])
    assert torch.equal(data.fetch(kept, index)[0], data.fetch(decoded, index)[0])


def test_its_identity_tells_other_files_labels_and_pixels(image_folder: Path) -> None:
    def identity(split: data.Samples) -> list[tuple[str, bytes]]:
        return [(name, value.numpy().tobytes()) for name, value in split.identity()]

    before = identity(load(image_folder).test)
    assert identity(load(image_folder).test) == before
    assert identity(load(image_folder, limit=3).test) != before
    Image.new("RGB", (30, 30), "red").save(image_folder / "val/a/0.JPEG")
    after = identity(load(image_folder).test)
    assert [name for (name, a), (_, b) in zip(before, after, strict=True) if a != b] == ["pixels"]
    (image_folder / "val/a/0.JPEG").rename(image_folder / "val/a/00.JPEG")
    assert dict(identity(load(image_folder).test))["files"] != dict(before)["files"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_part_is_named(image_folder: Path, part: str) -> None:
    shutil.rmtree(image_folder / part)
    with pytest.raises(FileNotFoundError, match=rf"images/{part}: missing, expected .* val/"):
        load(image_folder)


def test_an_empty_class_folder_is_named(image_folder: Path) -> None:
    (image_folder / "train/b2").mkdir()
    (image_folder / "val/b2").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/b2: holds no image, expected files \(\.jp"):
        load(image_folder)


def test_hidden_folders_and_files_are_no_classes_and_no_images(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = training_split(image_folder)
    copy = image_folder / "train/a/0.JPEG"
    for hidden in ("train/.ipynb_checkpoints", "train/a/.ipynb_checkpoints", "val/.cache"):
        (image_folder / hidden).mkdir()
        shutil.copy(copy, image_folder / hidden / "0-checkpoint.JPEG")
    (image_folder / "train/a/._0.JPEG").write_bytes(b"of a Mac")
    after = load(image_folder)
    assert after.num_classes == 3
    assert after.train.files.tolist() == before.files.tolist()  # type: ignore[attr-defined]
    assert not caplog.records


def test_files_that_are_left_out_are_counted_in_one_line(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = len(training_split(image_folder))
    shutil.copy(image_folder / "train/a/0.JPEG", image_folder / "train/b/extra.jfif")
    for name in ("a/1.gif", "c/2.GIF", "b/boxes.txt", "b/README", "flat.png"):
        (image_folder / "train" / name).write_bytes(b"")
    assert len(training_split(image_folder)) == whole + 1  # a .jfif is a JPEG
    (record,) = caplog.records
    counted = "1 .png in no class folder, 1 .txt, 2 .gif, 1 without an ending"
    assert all(part in record.getMessage() for part in counted.split(", "))
    assert f"{image_folder / 'train'}: 5 of its files left out" in record.getMessage()


def test_a_class_of_other_files_and_a_folder_without_classes_are_named(image_folder: Path) -> None:
    for file in (image_folder / "train/b").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(FileNotFoundError, match=r"train/b: holds no image, .*, got 3 \.gif"):
        load(image_folder)
    for folder in "abc":
        shutil.rmtree(image_folder / "train" / folder)
    with pytest.raises(FileNotFoundError, match=r"train: holds no class folder, expected CLASS/I"):
        load(image_folder)


def test_a_float_image_is_refused_by_name(image_folder: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(image_folder / "val/a/0.tiff")
    with pytest.raises(UnreadableImage, match=r"val/a/0\.tiff: TIFF with pixels of PIL's mode F"):
        load(image_folder)


def test_other_classes_in_train_than_in_val_are_named(image_folder: Path) -> None:
    (image_folder / "val/c").rename(image_folder / "val/d")
    with pytest.raises(ValueError, match=r"train/ has class folders that val/ lacks \(c\), exp"):
        load(image_folder)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"path": None}, ValueError, r"imagenet: expected a folder .*--data"),
        ({"path": "nowhere"}, FileNotFoundError, "nowhere: no such folder"),
        ({"on_bad_image": "x"}, ValueError, "on_bad_image: 'x', expected one of 'stop', 'skip'"),
    ],
)
def test_bad_arguments(image_folder: Path, how: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        data.load("imagenet", **{"path": image_folder, **how})


@pytest.mark.slow
def test_without_torchvision_the_error_says_what_to_install(image_folder: Path) -> None:
    code = f"""
import sys
sys.modules["torchvision"] = None
from iaat_fast import data
try:
    data.load("imagenet", {str(image_folder)!r})
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'iaat-fast[images]'" in done.stdout


def test_a_worker_that_dies_is_said_so(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iaat_fast.data.decoding.decode_augmented", lambda *a, **k: os._exit(9))
    split = training_split(image_folder)
    with pytest.raises(ChildProcessError, match="a process that decodes images has died"):
        augmented(FolderSplit(split.root, split.files, split.labels, 1), [[0]], [1])


def test_imagenette(imagenette: Path) -> None:
    split = load(imagenette, limit=20)
    assert split.num_classes == 10
    assert split.train.labels.tolist() == [*range(10)] * 2
    x, y = data.fetch(split.test, torch.arange(10))
    assert y.tolist() == [*range(10)]
    assert 0.3 < x.mean() < 0.6
