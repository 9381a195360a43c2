"""What a run folder guarantees: whole files or old files, nothing executed, clear errors."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from iaat_fast.run_folder import RunFolder


def state(step: int = 1) -> dict:
    return {
        "model": {"weight": torch.arange(1000.0)},
        "epsilon": torch.full((4,), 0.1),
        "optimizer": {},
        "epoch": 0,
        "step": step,
        "config": {"method": "iaat"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create({"method": "iaat", "attack": {"eps": 8 / 255}}, {"python": "3"})
    return folder


def files(folder: RunFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_configuration_comes_back_with_the_same_floats(folder: RunFolder) -> None:
    assert folder.config() == {"method": "iaat", "attack": {"eps": 8 / 255}}
    assert folder.env() == {"python": "3"}


def test_a_folder_is_free_until_a_run_is_created_in_it(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "none").is_free
    folder = RunFolder(tmp_path)
    (tmp_path / ".config.json.123.tmp").touch()  # what a kill in the first write leaves
    assert folder.is_free
    assert not folder.is_run
    folder.create({}, {})
    assert folder.is_run
    assert not folder.is_free
    assert not (tmp_path / ".config.json.123.tmp").exists()


def test_a_file_is_no_free_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not RunFolder(tmp_path / "file").is_free


def test_create_over_a_run_removes_the_runs_files_and_no_others(folder: RunFolder) -> None:
    folder.save_checkpoint(state())
    folder.append_metrics({"step": 1})
    folder.save_epsilon(1, torch.zeros(3))
    folder.save_results({"natural_accuracy": 1.0})
    (folder.path / "notes.txt").write_text("mine")
    folder.create({"method": "adv"}, {})
    assert files(folder) == {"config.json", "env.json", "notes.txt"}
    assert folder.config() == {"method": "adv"}


def test_checkpoint_round_trip(folder: RunFolder) -> None:
    folder.save_checkpoint(state(7))
    loaded = folder.checkpoint()
    assert loaded["step"] == 7
    assert torch.equal(loaded["model"]["weight"], torch.arange(1000.0))


def test_a_missing_checkpoint_is_file_not_found(folder: RunFolder) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt"):
        folder.checkpoint()


def test_a_state_that_lacks_a_key_is_not_saved(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        folder.save_checkpoint({k: v for k, v in state().items() if k != "epsilon"})
    assert not folder.checkpoint_path.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_checkpoint_cut_short_is_refused(folder: RunFolder, keep: float) -> None:
    folder.save_checkpoint(state())
    whole = folder.checkpoint_path.read_bytes()
    kept = int(len(whole) * keep) if isinstance(keep, float) else keep
    folder.checkpoint_path.write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        folder.checkpoint()


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda s, p: p.write_bytes(pickle.dumps(s))])
def test_pickled_code_in_a_checkpoint_is_refused_and_not_executed(
    folder: RunFolder, tmp_path: Path, save
) -> None:
    mark = tmp_path / "executed"
    save({**state(), "config": Malicious(mark)}, folder.checkpoint_path)
    with pytest.raises(ValueError, match="refused"):
        folder.checkpoint()
    assert not mark.exists()


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(2)])
def test_another_file_of_tensors_is_not_a_checkpoint(folder: RunFolder, content: object) -> None:
    torch.save(content, folder.checkpoint_path)
    with pytest.raises(ValueError, match="lacks"):
        folder.checkpoint()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder.save_checkpoint(state(1))
    before = files(folder)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            folder.save_checkpoint(state(2))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(folder.checkpoint_path)
    assert folder.checkpoint()["step"] == 1
    assert files(folder) == before


def test_metrics_come_back_without_a_line_cut_short(folder: RunFolder) -> None:
    assert folder.metrics() == []
    folder.append_metrics({"step": 1, "loss": 0.1})
    with open(folder.metrics_path, "a") as file:
        file.write('{"step": 2, "lo')
    assert folder.metrics() == [{"step": 1, "loss": 0.1}]


def test_a_damaged_line_in_the_middle_of_the_metrics_is_an_error(folder: RunFolder) -> None:
    folder.metrics_path.write_text('{"step": \n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        folder.metrics()


def test_cutting_the_metrics_leaves_the_rows_up_to_a_step(folder: RunFolder) -> None:
    for step in (4, 8, 12):
        folder.append_metrics({"step": step})
    with open(folder.metrics_path, "a") as file:
        file.write('{"st')
    folder.cut_metrics(8)
    folder.append_metrics({"step": 12, "again": True})
    assert folder.metrics() == [{"step": 4}, {"step": 8}, {"step": 12, "again": True}]


def test_radii_snapshots_are_float32_by_epoch(folder: RunFolder) -> None:
    folder.save_epsilon(10, torch.tensor([0.1, 0.2]))
    folder.save_epsilon(5, torch.tensor([0.0, 0.3]))
    snapshots = folder.epsilon_snapshots()
    assert list(snapshots) == [5, 10]
    assert snapshots[5].name == "epoch-0005.npy"
    values = np.load(snapshots[5])
    assert values.dtype == np.float32
    assert values.tolist() == [0.0, np.float32(0.3)]


def test_resumptions_are_recorded(folder: RunFolder) -> None:
    folder.add_resumption({"python": "4"}, step=9)
    folder.add_resumption({"python": "5"}, step=12)
    resumed = [{"step": 9, "python": "4"}, {"step": 12, "python": "5"}]
    assert folder.env() == {"python": "3", "resumed": resumed}


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_a_clear_error(folder: RunFolder, content: str) -> None:
    folder.config_path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        folder.config()
