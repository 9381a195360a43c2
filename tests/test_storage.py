"""A lock that a dead process frees; a hash of dtype, shape, content and order; folders that cannot be written."""

from __future__ import annotations

import os
import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from iaat_fast.data import Split
from iaat_fast.evaluate import evaluate_suite
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.storage import check_folder, check_writable, content_hash, exclusive_lock
from iaat_fast.train import fit, preset

NOWHERE = Path("/proc/nowhere")


class Holder:
    """Another process that holds a folder, with a worker of its own or without."""

    def __init__(self, folder: Path, mode: str) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            hold(folder, mode, writing)
        os.close(writing)
        with open(reading) as said:
            line = said.readline().strip()
        assert line, "it holds the folder, or its worker does"
        self.worker = int(line) if line.isdigit() else None

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.pid = 0


def hold(folder: Path, mode: str, said: int) -> NoReturn:
    try:
        with exclusive_lock(folder):
            worker = os.fork() if mode == "worker" else None
            if not worker:
                # A worker says its own number: until it runs it still holds the lock.
                os.write(said, f"{worker if worker is None else os.getpid()}\n".encode())
            time.sleep(60)
    finally:
        os._exit(1)


@pytest.fixture(params=["alone", "worker"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path, request.param)
    yield holder
    holder.kill()
    if holder.worker is not None:
        os.kill(holder.worker, signal.SIGKILL)


def test_the_lock_of_a_killed_process_is_free_though_its_worker_lives(
    holder: Holder, tmp_path: Path
) -> None:
    with (
        pytest.raises(BlockingIOError, match="another process is at work there"),
        exclusive_lock(tmp_path),
    ):
        pass
    holder.kill()
    with exclusive_lock(tmp_path):
        assert not list(tmp_path.iterdir())


def test_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive_lock(tmp_path / "new"):
            pass
    holder = Holder(tmp_path / "new", "alone")
    holder.kill()


@pytest.mark.slow
@pytest.mark.parametrize("holder", ["alone"], indirect=True)
def test_fit_is_refused(holder: Holder, tmp_path: Path) -> None:
    config = preset("digits", method="clean", run={"out": str(tmp_path), "tensorboard": False})
    with pytest.raises(BlockingIOError, match="at work there"):
        fit(config, quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("holder", ["alone"], indirect=True)
def test_evaluate_suite_is_refused(holder: Holder, tmp_path: Path) -> None:
    split = Split(torch.zeros(4, 4, 4, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    target = EvalTarget(
        model=model,
        split=split,
        description={"data": {"name": "mine", "samples": 4, "path": None}},
    )
    with pytest.raises(BlockingIOError, match="at work there"):
        evaluate_suite(target, "quick", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_and_how_a_tensor_is_stored_does_not_matter() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert content_hash(x) == content_hash(x.T.contiguous().T)
    assert content_hash(x) == content_hash(x.clone().requires_grad_())


def test_the_kind_of_a_mapping_or_sequence_does_not_matter() -> None:
    assert content_hash({"a": (1, None)}) == content_hash(OrderedDict(a=[1, None]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.tensor([0.0, 1e-45])),
        ([1, 2], [2, 1]),
        ([1, [2]], [[1], 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (1, 1.0),
        (1, True),
        ("1", 1),
        (None, "None"),
    ],
)
def test_everything_else_does(one: object, other: object) -> None:
    assert content_hash(one) != content_hash(other)


def test_scalars_empty_tensors_and_half_types_have_one() -> None:
    values = [torch.zeros(()), torch.zeros(0), torch.zeros(1, dtype=torch.bfloat16)]
    assert len({content_hash(value) for value in values}) == 3


def test_an_output_that_cannot_be_written_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^--out /proc/nowhere: cannot be made \(No such file"):
        check_folder("--out", NOWHERE)
    with pytest.raises(OSError, match=r"^--json /proc/nowhere: /proc is not writable"):
        check_writable("--json", NOWHERE)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"^--out .*file: is a file, expected a folder"):
        check_folder("--out", tmp_path / "file")


def test_the_trial_of_an_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/kept").touch()
    check_folder("--out", tmp_path / "new/run")
    check_folder("--out", tmp_path / "old")
    check_writable("--json", tmp_path / "out.json")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"old", "old/kept"}
