"""The real command in several processes: killed, interrupted, given nonsense; started anew by torchrun."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
import torch

from iaat_fast.run_folder import RunFolder
from iaat_fast.train.distributed import from_environment
from tests.forked import Forked, wait_until

# 15 steps, 5 of them in the warm-up; of 17 images in a batch one rank takes 9, the other 8.
RUN = [
    *["--limit=80", "--batch-size=17", "--epochs=3", "--warmup-epochs=1", "--steps=10"],
    *["--decay-epochs", "2"],
    *["--checkpoint-steps=2", "--snapshot-epochs=1", "--device=cpu"],
    *["--eval-steps=1", "--eval-restarts=1", "--no-tensorboard"],
]


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return str(server.getsockname()[1])


def processes(*flags: str) -> list[Forked]:
    """The command in two ranks, without torchrun's agent."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    return [
        Forked("iaat_fast.train", *flags, env={**address, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]


def torchrun(*flags: str) -> Forked:
    """torchrun, whose agent is forked and forks the ranks."""
    agent = ["--nproc-per-node=2", f"--master-port={free_port()}", "--max-restarts=1"]
    command = [*agent, "-m", "iaat_fast.train", *flags]
    return Forked("torch.distributed.run", *command, env={"OMP_NUM_THREADS": "1"}, forking=True)


def ends(ranks: list[Forked]) -> tuple[list[int | None], list[str], list[str]]:
    """Statuses, what each printed, and the lines on standard error of all of them."""
    texts = [rank.communicate() for rank in ranks]
    errors = [line for _, err in texts for line in err.splitlines()]
    return [rank.returncode for rank in ranks], [out for out, _ in texts], errors


def wait_for_a_checkpoint(folder: Path, process: Forked, *, after: int = 0) -> None:
    """Until one is there that was written later than `after`, in nanoseconds."""
    path = RunFolder(folder).checkpoint_path
    wait_until(lambda: path.exists() and path.stat().st_mtime_ns > after, process)


def worker(agent: int, rank: int) -> int:
    """The process that torchrun started as this rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children")
    if not children.exists():
        pytest.skip("needs /proc to find torchrun's workers")
    workers = sorted(int(pid) for pid in children.read_text().split())
    assert len(workers) == 2
    return workers[rank]


def assert_same_bits(one: RunFolder, other: RunFolder) -> None:
    first, second = one.checkpoint(), other.checkpoint()
    assert first["step"] == second["step"] == 15
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert torch.equal(first["epsilon"], second["epsilon"])
    rows = [[{**row, "seconds": None} for row in run.metrics()] for run in (one, other)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    statuses, (first, second), errors = ends(processes(*RUN, "--out", str(folder)))
    assert (statuses, errors) == ([0, 0], [])
    assert "2 ranks: of a batch of 17 the first takes 9 images, the others 8; of the last" in first
    assert second == ""
    return RunFolder(folder)


@pytest.mark.slow
def test_a_killed_rank_is_started_anew_torchrun_interrupted_saves_and_no_bit_changes(
    reference: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    run = torchrun(*RUN, "--out", str(folder.path))
    wait_for_a_checkpoint(folder.path, run)
    os.kill(worker(run.pid, rank=1), signal.SIGKILL)

    def started() -> list[int]:
        """At which step each start of the ranks has begun."""
        return [int(step) for step in re.findall(r"step (\d+) of 15; run folder", run.output())]

    wait_until(lambda: len(started()) == 2, run)
    assert 0 < started()[1] < 15

    wait_for_a_checkpoint(folder.path, run, after=folder.checkpoint_path.stat().st_mtime_ns)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate()
    said = [line for line in err.splitlines() if line.startswith("stopped after step")]
    assert len(said) == 1, err
    step = folder.checkpoint()["step"]
    assert started()[1] < step
    assert said[0].startswith(f"stopped after step {step} of 15, checkpoint saved; resume with")

    statuses, _, errors = ends(processes("--resume", "--out", str(folder.path)))
    assert (statuses, errors) == ([0, 0], [])
    assert_same_bits(folder, reference)
    for name in ("natural_accuracy", "robust_accuracy", "eps_mean", "eps_std", "parts"):
        assert folder.results()[name] == reference.results()[name]


@pytest.mark.slow
def test_ctrl_c_on_one_rank_ends_all_with_its_status_and_one_line(tmp_path: Path) -> None:
    ranks = processes(*RUN, "--out", str(tmp_path / "run"))
    wait_for_a_checkpoint(tmp_path / "run", ranks[0])
    ranks[1].send_signal(signal.SIGINT)
    statuses, _, errors = ends(ranks)
    assert statuses == [130, 130]
    step = RunFolder(tmp_path / "run").checkpoint()["step"]
    assert len(errors) == 1
    assert errors[0].startswith(f"stopped after step {step} of 15, checkpoint saved; resume with")


@pytest.mark.slow
def test_a_rank_that_is_gone_ends_the_others_with_one_line(tmp_path: Path) -> None:
    ranks = processes(*RUN, "--out", str(tmp_path / "run"))
    wait_for_a_checkpoint(tmp_path / "run", ranks[0])
    ranks[1].kill()
    statuses, _, errors = ends(ranks)
    assert statuses == [2, -signal.SIGKILL]
    assert len(errors) == 1
    assert "lost another" in errors[0]
    assert RunFolder(tmp_path / "run").checkpoint()["step"] >= 2


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    statuses, outs, errors = ends(processes(*RUN, "--out", str(tmp_path)))
    assert (statuses, outs) == ([2, 2], ["", ""])
    assert len(errors) == 1
    assert "no run folder" in errors[0]


@pytest.mark.slow
def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
        variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        (status,), _, errors = ends([Forked("iaat_fast.train", env={**variables, **address})])
    assert status == 2
    (line,) = errors
    assert f"MASTER_PORT {port} is in use on localhost" in line


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"RANK, WORLD_SIZE set without LOCAL_RANK, MASTER_ADDR"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK set without RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: '2' .*, expected a number from 0 and below 2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' .*, expected a number from 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT: '70000'"),
    ],
)
def test_an_environment_set_in_part_or_wrong_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    whole = {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    rest = whole if "without" not in message else {}
    for name, value in {**rest, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        from_environment()


def test_an_address_alone_makes_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert from_environment().count == 1
