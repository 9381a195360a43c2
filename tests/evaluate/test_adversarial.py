"""Files of an evaluation on a disk that is full: one line, nothing half-written, and the last good file stays."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast.data import Split
from iaat_fast.evaluate.cli import main
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.parts.adversarial import AdversarialFiles, load_adversarial
from iaat_fast.evaluate.record import Record
from iaat_fast.report.build import publish
from iaat_fast.run_folder import RunFolder


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """No file can grow beyond `at` bytes. (Python ignores the signal of it, so a write fails as on a full disk.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def target() -> EvalTarget:
    split = Split(torch.zeros(6, 4, 4, 1, dtype=torch.uint8), torch.arange(6) % 3)
    return EvalTarget(torch.nn.Flatten(), split, {})


def test_a_full_disk_is_known_before_the_attack_and_costs_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), "--suite", "quick", "--parts", "pgd", "--save-adversarial"]
    words += ["--limit", "4", "--eps", "20", "--alpha", "5", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_room)
        assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(".pgd10x5-eps20.npy.tmp: cannot write: No space left on device")
    kept = run / "evaluation" / "quick-digits-4-seed0"
    assert list((kept / "adversarial").iterdir()) == []
    assert main(words) == 0
    x_adv, _, about = load_adversarial(kept / "adversarial/pgd10x5-eps20.npz")
    assert x_adv.shape == (4, 1, 8, 8)
    assert about["key"] == "pgd10x5-eps20"


def test_kept_images_are_those_given_also_after_a_new_start(
    target: EvalTarget, tmp_path: Path
) -> None:
    images = torch.rand(6, 1, 4, 4)
    files = AdversarialFiles(tmp_path, ["a", "b"], target, fresh=True)
    files.keep("a", torch.tensor([4, 0]), images[[4, 0]])
    again = AdversarialFiles(tmp_path, ["a", "b"], target, fresh=False)
    again.keep(
        "a", torch.tensor([1, 2, 3, 5]), images[[1, 2, 3, 5]].to(memory_format=torch.channels_last)
    )
    again.flush()
    again.finish("a", {"key": "a"})
    again.discard("a")
    assert torch.equal(load_adversarial(tmp_path / "a.npz")[0], images)
    fresh = AdversarialFiles(tmp_path, ["b"], target, fresh=True)
    fresh.finish("b", {})
    assert not load_adversarial(tmp_path / "b.npz")[0].any()


def test_images_that_cannot_be_written_are_an_error_that_names_the_file(
    target: EvalTarget, tmp_path: Path
) -> None:
    files = AdversarialFiles(tmp_path, ["a"], target, fresh=True)
    with full_disk(at=200), pytest.raises(OSError, match=r"cannot write: ") as error:
        files.keep("a", torch.tensor([5]), torch.rand(1, 1, 4, 4))
    assert error.value.filename == str(tmp_path / ".a.npy.tmp")


def adversarial(folder: Path, target: EvalTarget, size: int) -> None:
    files = AdversarialFiles(folder, ["a"], target, fresh=True)
    try:
        files.finish("a", {"size": "x" * size})
    finally:
        files.discard("a")


def record(folder: Path, target: EvalTarget, size: int) -> None:
    Record(folder, {"measurements": ["x" * size]}, {"labels": np.arange(3)}).save()


def progress(folder: Path, target: EvalTarget, size: int) -> None:
    Record(folder, {}, {}).save_progress("a", torch.zeros(size))


def results(folder: Path, target: EvalTarget, size: int) -> None:
    RunFolder(folder).save_results({"a": "x" * size})


def report(folder: Path, target: EvalTarget, size: int) -> None:
    publish({"index.html": b"x" * size, "tables/a.csv": b"1"}, folder / "report", {})


@pytest.mark.parametrize("write", [adversarial, record, progress, results, report])
def test_a_full_disk_leaves_the_last_good_files_and_nothing_else(
    write: Callable[[Path, EvalTarget, int], None], target: EvalTarget, tmp_path: Path
) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with full_disk(at=8000), pytest.raises(OSError, match="cannot write"):
        write(tmp_path, target, 9000)
    assert not {path.name for path in files()} - {"verdicts.npz"}  # written before, and whole
    write(tmp_path, target, 10)
    before = files()
    with full_disk(at=8000), pytest.raises(OSError, match="cannot write") as error:
        write(tmp_path, target, 9000)
    assert files() == before
    assert str(error.value.filename).startswith(str(tmp_path))
