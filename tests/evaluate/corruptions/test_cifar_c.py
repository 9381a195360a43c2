"""CIFAR-10-C folders: measured exactly, summarised, and with files that are damaged or of another data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from iaat_fast.data import Split
from iaat_fast.evaluate.corruptions import (
    ALEXNET_ERRORS,
    ALL,
    MAIN,
    CifarC,
    mean_corruption_error,
    measure_corruptions,
    open_corruptions,
    summarise,
)
from iaat_fast.evaluate.results import wilson

SAMPLES, CLASSES = 20, 10


def measured(
    published: Any, images: Any, **settings: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The rows by corruption, and the summary."""
    rows = [m.row for m in measure_corruptions(published.model, images, **settings)]
    return {row["corruption"]: row for row in rows}, summarise(rows, images)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 0), (256, 0), (7, 2)])
def test_the_published_files_are_measured_exactly(
    published: Any, folder: Path, split: Split, batch_size: int, workers: int
) -> None:
    images = CifarC(folder, split)
    # One at a time and in processes it takes longer: three corruptions will do.
    names = ALL if batch_size > 1 and not workers else ALL[:3]
    found = list(
        measure_corruptions(
            published.model,
            images,
            batch_size=batch_size,
            workers=workers,
            done=set(ALL) - set(names),
        )
    )
    assert [one.row["corruption"] for one in found] == list(names)
    for one in found:
        name = one.row["corruption"]
        for severity, row in enumerate(one.row["severities"], start=1):
            right = published.right(name, severity)
            assert row == {
                "severity": severity,
                "accuracy": right / SAMPLES,
                "correct": right,
                "samples": SAMPLES,
            }
            assert one.verdicts[severity - 1].tolist() == [i < right for i in range(SAMPLES)]


def test_rows_and_summary_are_as_the_record_has_them(
    published: Any, folder: Path, split: Split
) -> None:
    rows, summary = measured(published, CifarC(folder, split))
    assert tuple(rows) == ALL
    row = rows["fog"]
    total = sum(published.right("fog", severity) for severity in range(1, 6))
    assert row["key"] == "corruption-fog"
    assert (row["kind"], row["part"], row["source"]) == ("corruption", "corruptions", "official")
    assert (row["accuracy"], row["correct"]) == (total / (5 * SAMPLES), total)
    # Of the accuracy itself, which is no whole number of the 20 images.
    assert row["interval_95"] == list(wilson(row["accuracy"] * SAMPLES, SAMPLES))
    mean = sum(published.right(name, s) for name in ALL for s in range(1, 6)) / (
        len(ALL) * 5 * SAMPLES
    )
    assert summary["mean_accuracy"] == pytest.approx(mean, abs=1e-12)
    assert (summary["types"], summary["complete"], summary["missing"]) == (19, True, [])
    assert summary["mce"] is None, "AlexNet's errors are no measure for CIFAR"


def test_a_limited_split_takes_the_first_of_each_block(
    published: Any, folder: Path, split: Split
) -> None:
    rows, _ = measured(published, CifarC(folder, split.first(6)))
    for name, row in rows.items():
        assert row["samples"] == 30
        expected = [min(6, published.right(name, severity)) for severity in range(1, 6)]
        assert [one["correct"] for one in row["severities"]] == expected


def test_what_is_done_is_passed_over(published: Any, folder: Path, split: Split) -> None:
    rows, _ = measured(published, CifarC(folder, split), done=ALL[:17])
    assert tuple(rows) == ALL[17:]


def test_the_model_keeps_its_mode_and_torch_its_random_state(
    published: Any, folder: Path, split: Split
) -> None:
    model = published.model.train()
    before = torch.get_rng_state()
    for _ in measure_corruptions(model, CifarC(folder, split), done=ALL[1:]):
        assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_counts_the_images_of_each_corruption(
    published: Any, folder: Path, split: Split
) -> None:
    calls: list[tuple[str, int, int]] = []
    images = CifarC(folder, split)
    list(
        measure_corruptions(
            published.model,
            images,
            batch_size=16,
            done=ALL[1:],
            progress=lambda name: lambda done, total: calls.append((name, done, total)),
        )
    )
    expected = [16, 20, 36, 40, 56, 60, 76, 80, 96, 100]
    assert calls == [("gaussian_noise", done, 100) for done in expected]


def damage(folder: Path, kind: str) -> str:
    """Damage fog.npy; returns what is to be said about it."""
    file = folder / "fog.npy"
    whole = np.load(file)
    if kind == "missing":
        file.unlink()
        return "missing"
    if kind == "short":
        np.save(file, whole[:95])
        return "short: 95 images"
    if kind == "indivisible":
        np.save(file, whole[:93])
        return "short: 93 images"
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if kind == "text":
        file.write_text("not found")
    if kind == "empty":
        file.write_bytes(b"")
    if kind == "pickle":
        np.save(file, np.array([{}], dtype=object))
    if kind == "archive":
        with open(file, "wb") as archive:
            np.savez(archive, x=whole)
        return "archive"
    if kind == "folder":
        file.unlink()
        file.mkdir()
    if kind == "float":
        np.save(file, whole.astype(np.float32))
        return "float32"
    if kind == "shape":
        np.save(file, whole[:, :3])
        return "[100, 3, 4, 3]"
    return "unreadable"


@pytest.mark.parametrize(
    "kind",
    [
        "missing", "short", "indivisible", "cut", "text", "empty", "pickle", "archive", "folder", "float", "shape",
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_others_are_measured(
    published: Any, folder: Path, split: Split, kind: str
) -> None:
    said = damage(folder, kind)
    rows, summary = measured(published, CifarC(folder, split))
    assert set(rows) == set(ALL) - {"fog"}
    assert not summary["complete"]
    (reason,) = summary["missing"]
    assert reason.startswith("fog: ")
    assert said in reason
    assert summary["types"] == 18
    others = [rows[name]["accuracy"] for name in rows]
    assert summary["mean_accuracy"] == pytest.approx(sum(others) / 18)


def test_labels_of_another_data_set_are_refused(folder: Path, split: Split) -> None:
    labels = split.labels.clone()
    labels[3] = (labels[3] + 1) % CLASSES
    with pytest.raises(ValueError, match=r"labels\.npy: 1 of 20 labels are not those of the test"):
        CifarC(folder, Split(split.images, labels))


def test_labels_that_agree_in_the_first_block_only_are_refused(folder: Path, split: Split) -> None:
    labels = np.load(folder / "labels.npy")
    labels[-1] = (labels[-1] + 1) % CLASSES
    np.save(folder / "labels.npy", labels)
    with pytest.raises(ValueError, match="1 of 20 labels"):
        CifarC(folder, split)


def test_a_folder_for_fewer_images_than_the_split_is_refused(folder: Path, split: Split) -> None:
    twice = Split(torch.cat([split.images] * 2), torch.cat([split.labels] * 2))
    with pytest.raises(
        ValueError, match=r"20 images per severity, the test split has 40.*--limit 20"
    ):
        CifarC(folder, twice)


@pytest.mark.parametrize("content", [None, b"", np.arange(7), np.ones(100)])
def test_labels_that_are_missing_or_damaged_are_an_error(
    folder: Path, split: Split, content: Any
) -> None:
    file = folder / "labels.npy"
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises((FileNotFoundError, ValueError), match=r"labels\.npy: "):
        CifarC(folder, split)


def test_a_folder_without_any_corruption_is_an_error(folder: Path, split: Split) -> None:
    for name in ALL:
        (folder / f"{name}.npy").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="holds none of the 19 corruptions; gaussian_noise"):
        CifarC(folder, split)


def test_an_empty_or_absent_folder_is_an_error(split: Split, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected gaussian_noise\.npy .* and labels\.npy"):
        open_corruptions(split, dataset="cifar10", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_corruptions(split, dataset="cifar10", folder=tmp_path / "absent")


@pytest.mark.parametrize("data", ["", "cifar10.npz"])
def test_the_published_folder_is_found_in_or_next_to_the_data(
    folder: Path, split: Split, data: str
) -> None:
    found = open_corruptions(split, dataset="cifar10", data=folder.parent / data)
    assert isinstance(found, CifarC)


def test_the_published_folder_is_found_next_to_data_that_was_downloaded(
    folder: Path, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "iaat_fast").mkdir()
    folder.rename(tmp_path / "iaat_fast" / "CIFAR-10-C")
    assert isinstance(open_corruptions(split, dataset="cifar10"), CifarC)


def test_a_batch_size_below_one_is_refused(published: Any, folder: Path, split: Split) -> None:
    with pytest.raises(ValueError, match="batch_size: 0, expected at least 1"):
        list(measure_corruptions(published.model, CifarC(folder, split), batch_size=0))


def test_a_worker_that_dies_is_an_error_in_one_line(folder: Path, split: Split) -> None:
    class Deadly(CifarC):
        def images(self, name: str, severity: int) -> Any:
            return DiesWhenRead()

    class DiesWhenRead:
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, number: int) -> np.ndarray:
            os._exit(1)

    with pytest.raises(ChildProcessError, match="a process that reads or corrupts images has died"):
        list(measure_corruptions(nn.Identity(), Deadly(folder, split), workers=1))


def test_alexnet_itself_has_an_mce_of_100() -> None:
    assert mean_corruption_error({k: 1 - v for k, v in ALEXNET_ERRORS.items()}) == pytest.approx(
        100
    )


def test_mce_is_the_mean_of_the_normalised_errors() -> None:
    # (0.4 / 0.819324 + 0.1 / 0.564592) / 2 = (0.488207 + 0.177119) / 2; saturate is no main corruption.
    accuracies = {"fog": 0.6, "brightness": 0.9, "saturate": 0.0}
    assert mean_corruption_error(accuracies) == pytest.approx(33.2663, abs=1e-4)
    assert mean_corruption_error({"saturate": 0.5}) is None


def test_there_are_15_main_corruptions_and_4_extra() -> None:
    assert len(MAIN) == 15
    assert len(set(ALL)) == 19
    assert set(ALL) - set(MAIN) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
