"""Loading by name: digits, .npz files and CIFAR folders, sound and damaged."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast import data
from iaat_fast.data._torchvision import datasets


def arrays(**replaced: Any) -> dict[str, Any]:
    """Six train and four test images of 9x8x3; `replaced` replaces keys, None drops them."""
    rng = np.random.default_rng(0)
    sound = {
        "x_train": rng.integers(0, 256, (6, 9, 8, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 3, 4, 4]),
        "x_test": rng.integers(0, 256, (4, 9, 8, 3), dtype=np.uint8),
        "y_test": np.array([0, 6, 1, 2]),
    }
    return {key: value for key, value in (sound | replaced).items() if value is not None}


DIGITS_TEST_LABELS = [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def write_npz(path: Path, **replaced: Any) -> Path:
    np.savez(path, **arrays(**replaced))
    return path


@pytest.mark.slow
def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, iaat_fast.data;"
        "sys.exit(', '.join({'torchvision', 'sklearn', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n"


def test_digits_are_all_there_and_split_the_same_in_every_class() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    assert digits.num_classes == 10
    for split, size in ((digits.train, 1437), (digits.test, 360)):
        share = split.labels.bincount() / size
        overall = torch.from_numpy(load_digits().target).bincount() / 1797
        assert (share - overall).abs().max() < 1 / size
    loaded = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    original = np.rint(load_digits().images.reshape(1797, 64) * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, loaded.numpy())) == sorted(map(bytes, original))


def test_digits_are_split_the_same_way_every_time() -> None:
    first, again = data.load("digits"), data.load("digits")
    assert torch.equal(first.train.images, again.train.images)
    # The order is part of published results: scikit-learn must not change it unnoticed.
    assert first.test.labels[:12].tolist() == DIGITS_TEST_LABELS


def test_limit_takes_the_first_samples_of_both_splits() -> None:
    whole, few = data.load("digits"), data.load("digits", limit=50)
    assert len(few.train) == len(few.test) == 50
    assert few.num_classes == 10
    assert torch.equal(few.train.images, whole.train.images[:50])
    assert torch.equal(few.test.labels, whole.test.labels[:50])
    assert len(data.load("digits", limit=1000).test) == 360


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=rf"^limit: {limit}, expected at least 1"):
        data.load("digits", limit=limit)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"^name: 'cifer10', expected one of .*; did you mean 'cifar10'"
    ):
        data.load("cifer10")
    with pytest.raises(ValueError, match=r"^name: 'x', expected one of 'digits', 'cifar10', 'cif"):
        data.load("x")


@pytest.mark.parametrize("name", data.NAMES)
def test_an_npz_is_loaded_under_every_name(tmp_path: Path, name: str) -> None:
    path = write_npz(tmp_path / "own.npz")
    own = data.load(name, path)
    assert own.name == name
    assert own.num_classes == 7
    expected = arrays()
    assert np.array_equal(own.train.images, expected["x_train"])
    assert np.array_equal(own.train.labels, expected["y_train"])
    assert np.array_equal(own.test.images, expected["x_test"])
    assert np.array_equal(own.test.labels, expected["y_test"])
    assert data.load(name, str(path), limit=2).num_classes == 7


def test_grey_images_need_no_channel_axis_and_labels_may_be_any_integers(tmp_path: Path) -> None:
    x = np.arange(6 * 8 * 8, dtype=np.uint8).reshape(6, 8, 8)
    y = np.arange(6, dtype=">u2")
    own = data.load("digits", write_npz(tmp_path / "g.npz", x_train=x, y_train=y, x_test=x[:4]))
    assert own.train.images.shape == (6, 8, 8, 1)
    assert np.array_equal(own.train.images[..., 0], x)
    assert own.train.labels.dtype == torch.int64
    assert own.train.labels.tolist() == list(range(6))


X = arrays()["x_train"]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x_test": None}, "x_test is missing, .* got x_train, y_train, y_test"),
        ({"x_train": X / 255}, r"x_train: expected uint8 .* got float64 \[6, 9, 8, 3\]"),
        ({"x_train": X[0, 0]}, r"x_train: expected uint8 .* got uint8 \[8, 3\]"),
        (
            {"x_train": X.transpose(0, 3, 1, 2)},
            r"x_train: .* got uint8 \[6, 3, 9, 8\], which looks like \[N, C, H",
        ),
        ({"x_train": X // 128}, r"x_train: no pixel above 1, expected values 0 \.\. 255"),
        ({"x_train": X[:0], "y_train": np.arange(0)}, "x_train: expected at least one image"),
        ({"x_test": X[:4, :8]}, r"x_test: expected images of shape \[9, 8, 3\] .* \[8, 8, 3\]"),
        ({"y_train": np.zeros(6)}, r"y_train: expected integers \[6\], .* got float64 \[6\]"),
        ({"y_train": np.zeros(6, bool)}, "y_train: expected integers .* got bool"),
        ({"y_train": np.zeros(5, int)}, r"y_train: expected integers \[6\], .* got int64 \[5\]"),
        ({"y_train": np.zeros((6, 1), int)}, r"y_train: .* got int64 \[6, 1\]"),
        ({"y_test": np.array([0, 1, -1, 2])}, r"y_test: expected labels 0 \.\. .*got -1 \.\. 2"),
        ({"y_test": np.array([0, 1, 2**40, 2])}, r"y_test: .*got 0 \.\. 1099511627776"),
        ({"y_test": np.array([0, 1, 2**63, 2], np.uint64)}, r"y_test: .*got 0 \.\. 92233720"),
        ({"y_test": np.array([0, 1, 10, 2])}, r"y_test: expected labels 0 \.\. 9 .* got 10"),
        ({"y_test": np.array([0, 1, None, 2])}, "y_test: expected a plain numeric array"),
    ],
)
def test_a_bad_npz_is_refused_naming_file_and_key(
    tmp_path: Path, replaced: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path / "bad.npz", **replaced)
    with pytest.raises(ValueError, match=r"bad\.npz: " + message):
        data.load("cifar10", path)


class Tripwire:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_code_in_an_npz_is_never_executed(tmp_path: Path) -> None:
    wire = np.array([Tripwire(tmp_path / "executed")] * 6, dtype=object)
    path = write_npz(tmp_path / "evil.npz", y_train=wire)
    with pytest.raises(ValueError, match="y_train: expected a plain numeric array"):
        data.load("digits", path)
    assert not (tmp_path / "executed").exists()


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", X)
    sound = write_npz(tmp_path / "sound.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(sound[: len(sound) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("array.npy", "cut.npz", "empty.npz"):
        with pytest.raises(ValueError, match=rf"{name}: expected an \.npz file"):
            data.load("digits", tmp_path / name)


def test_damaged_bytes_inside_an_npz_are_noticed(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "flipped.npz")
    content = bytearray(path.read_bytes())
    at = content.index(arrays()["x_train"].tobytes()[:64]) + 20
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.npz: x_train: .* could not read it: Bad CRC"):
        data.load("digits", path)


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x_train.npy", "not an array")
    with pytest.raises(ValueError, match=r"text\.npz: x_train: expected an array, got bytes"):
        data.load("digits", path)


@pytest.mark.parametrize("name", data.NAMES)
def test_a_path_that_does_not_exist_is_refused_and_not_made(tmp_path: Path, name: str) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"{path}: no such folder or .npz"):
        data.load(name, path)
    assert not path.exists()


def test_digits_take_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digits is embedded"):
        data.load("digits", tmp_path)


def batch(n: int, seed: int, label_key: str) -> bytes:
    rng = np.random.default_rng(seed)
    content = {
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        label_key: rng.integers(0, 10, n).tolist(),
    }
    return pickle.dumps(content)


@pytest.fixture(params=["cifar10", "cifar100"])
def tiny_cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, Any]:
    """A CIFAR folder of a few images in the official layout, its checksums in place of the real."""
    name = request.param
    cifar = datasets().CIFAR10 if name == "cifar10" else datasets().CIFAR100
    folder = tmp_path / "tiny" / cifar.base_folder
    folder.mkdir(parents=True)
    labels = "labels" if name == "cifar10" else "fine_labels"

    def write(filename: str, content: bytes) -> list[str]:
        (folder / filename).write_bytes(content)
        return [filename, hashlib.md5(content).hexdigest()]

    train = [write(file, batch(4, i, labels)) for i, (file, _) in enumerate(cifar.train_list)]
    test = [write(file, batch(3, 9, labels)) for file, _ in cifar.test_list]
    filename, md5 = write(cifar.meta["filename"], pickle.dumps({cifar.meta["key"]: ["a"]}))
    archive = tmp_path / "archive" / cifar.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, cifar.base_folder)
    monkeypatch.setattr(cifar, "train_list", train)
    monkeypatch.setattr(cifar, "test_list", test)
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"filename": filename, "md5": md5})
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return name, folder, cifar


def check_tiny(loaded: data.ImageData, folder: Path, cifar: Any) -> None:
    parts = [pickle.loads((folder / file).read_bytes()) for file, _ in cifar.train_list]
    pixels = np.concatenate([part["data"] for part in parts])
    assert np.array_equal(loaded.train.images.permute(0, 3, 1, 2).flatten(1), pixels)
    assert len(loaded.test) == 3
    assert loaded.num_classes == {"cifar10": 10, "cifar100": 100}[loaded.name]


def test_a_cifar_folder_is_read_given_its_parent_or_itself(
    tiny_cifar: tuple[str, Path, Any],
) -> None:
    name, folder, cifar = tiny_cifar
    check_tiny(data.load(name, folder.parent, download=False), folder, cifar)
    check_tiny(data.load(name, folder, download=False), folder, cifar)


def test_a_cifar_archive_is_extracted_next_to_itself(tiny_cifar: tuple[str, Path, Any]) -> None:
    name, folder, cifar = tiny_cifar
    root = folder.parents[1] / "archive"
    check_tiny(data.load(name, root, download=False), folder, cifar)
    assert sorted(file.name for file in root.iterdir()) == sorted(
        [cifar.filename, cifar.base_folder]
    )


def test_a_truncated_cifar_archive_is_refused(tiny_cifar: tuple[str, Path, Any]) -> None:
    name, folder, cifar = tiny_cifar
    archive = folder.parents[1] / "archive" / cifar.filename
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{archive}: truncated or damaged: 100 bytes"):
        data.load(name, archive.parent)
    assert list(archive.parent.iterdir()) == [archive]


def test_a_truncated_cifar_file_is_named_and_not_replaced(
    tiny_cifar: tuple[str, Path, Any],
) -> None:
    name, folder, cifar = tiny_cifar
    filename, md5 = cifar.train_list[-1]
    file = folder / filename
    file.write_bytes(file.read_bytes()[:-50])
    size = file.stat().st_size
    with pytest.raises(ValueError, match=f"{file}: truncated or damaged: {size} .*MD5 {md5}"):
        data.load(name, folder)
    assert file.stat().st_size == size


def test_a_missing_cifar_file_is_named(tiny_cifar: tuple[str, Path, Any]) -> None:
    name, folder, cifar = tiny_cifar
    file = folder / cifar.test_list[0][0]
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}: missing"):
        data.load(name, folder)


def test_a_pickle_with_a_wrong_checksum_is_never_opened(tiny_cifar: tuple[str, Path, Any]) -> None:
    name, folder, cifar = tiny_cifar
    wire = folder / "executed"
    (folder / cifar.train_list[0][0]).write_bytes(pickle.dumps(Tripwire(wire)))
    with pytest.raises(ValueError, match="truncated or damaged"):
        data.load(name, folder)
    assert not wire.exists()


def test_a_folder_without_cifar_is_refused_without_download(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: holds no cifar10: .*batches-py"):
        data.load("cifar10", tmp_path, download=False)
    assert not any(tmp_path.iterdir())


def test_a_failed_download_leaves_nothing_behind_and_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "iaat_fast"
    with pytest.raises(FileNotFoundError, match=f"{folder}: .*Name or service .*--data") as info:
        data.load("cifar10")
    assert "\n" not in str(info.value)
    assert not any(folder.iterdir())


class Response(io.BytesIO):
    """What urlopen gives back: the body, its length and the address it came from."""

    def __init__(self, body: bytes, url: str) -> None:
        super().__init__(body)
        self.length, self.url = len(body), url


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_download_is_checked_and_appears_whole_or_not_at_all(
    tiny_cifar: tuple[str, Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: int,
) -> None:
    name, folder, cifar = tiny_cifar
    body = (tmp_path / "archive" / cifar.filename).read_bytes()
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda request: Response(body[cut:], request.full_url)
    )
    target = tmp_path / "target"
    target.mkdir()
    if cut:
        with pytest.raises(FileNotFoundError, match=f"{target}: .* corrupted"):
            data.load(name, target)
        assert not any(target.iterdir())
    else:
        check_tiny(data.load(name, target), folder, cifar)
        assert [file.name for file in target.iterdir()] == [cifar.base_folder]


@pytest.mark.slow
def test_real_cifar10_is_loaded_from_an_npz(cifar10_npz: Path) -> None:
    cifar10 = data.load("cifar10", cifar10_npz)
    assert cifar10.train.images.shape == (50000, 32, 32, 3)
    assert cifar10.test.images.shape == (10000, 32, 32, 3)
    assert cifar10.num_classes == 10
    assert cifar10.train.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test.labels.bincount().tolist() == [1000] * 10
    # The per-channel mean that the literature subtracts: CIFAR-10, in its channel order.
    mean = cifar10.train.images.double().mean(dim=(0, 1, 2))
    assert torch.allclose(mean, torch.tensor([125.3, 123.0, 113.9]).double(), atol=0.1)
