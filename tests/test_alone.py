"""One process at a time in a folder: a second one is refused, a dead one lets go, workers do not hold on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from iaat_fast.alone import alone_in
from iaat_fast.data import Split
from iaat_fast.evaluate import evaluate_suite
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.train import fit, preset

HOLD = """
import os, sys, time
from pathlib import Path
from iaat_fast.alone import alone_in
with alone_in(Path(sys.argv[1])):
    worker = os.fork() if sys.argv[2] == "worker" else None
    if not worker:
        # A worker speaks for itself: until it runs it has not let go.
        print(worker if worker is None else os.getpid(), flush=True)
    time.sleep(60)
"""


class Holder:
    """Another process that holds a folder, with a worker of its own or without."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), mode], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        self.worker = int(said) if said.isdigit() else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["alone", "worker"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holder]:
    holder = Holder(tmp_path, request.param)
    yield holder
    holder.kill()
    if holder.worker is not None:
        os.kill(holder.worker, signal.SIGKILL)


def test_a_killed_process_lets_go_though_its_worker_lives(holder: Holder, tmp_path: Path) -> None:
    with (
        pytest.raises(BlockingIOError, match="another process is at work there"),
        alone_in(tmp_path),
    ):
        pass
    holder.kill()
    with alone_in(tmp_path):
        assert not list(tmp_path.iterdir())


def test_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with alone_in(tmp_path / "new"):
            pass
    holder = Holder(tmp_path / "new", "alone")
    holder.kill()


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
    subject = EvalTarget(
        model=model,
        split=split,
        description={"data": {"name": "mine", "samples": 4, "path": None}},
    )
    with pytest.raises(BlockingIOError, match="at work there"):
        evaluate_suite(subject, "quick", folder=tmp_path)
    assert not list(tmp_path.iterdir())
