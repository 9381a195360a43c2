"""The loop over jobs, with commands that take no time in place of training."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from iaat_fast.sweep.display import Display
from iaat_fast.sweep.driver import Outcome, drive
from iaat_fast.sweep.folder import SweepFolder
from iaat_fast.sweep.grid import Grid
from iaat_fast.sweep.jobs import Job, Suite, plan
from iaat_fast.sweep.launchers import LocalLauncher, share
from tests.forked import wait_until

# What a command does: {run} is the run folder, {out} that of the sweep.
TRAIN = """
os.makedirs('{run}')
write('{run}/config.json', {{}})
write('{run}/results.json', {{"natural_accuracy": 0.9, "samples": 9}})
"""
EVALUATE = """
os.makedirs('{run}/evaluation/quick')
rows = [{{"part": "natural"}}, {{"part": "pgd"}}]
record = {{"suite": "quick", "rule": "last", "seed": 0, "complete": True, "measurements": rows}}
write('{run}/evaluation/quick/results.json', {{**record, "data": {{"samples": 9}}}})
"""
FAIL = "print('epoch 1/3'); sys.exit('train: error: diverged')"
SILENT = "os.kill(os.getpid(), 9)"
FORGETFUL = "print('all is well')"
# Saves at SIGTERM, as training does.
ENDLESS = """
signal.signal(signal.SIGTERM, lambda *_: (write('{run}.saved', {{}}), sys.exit(143)))
write('{run}.running', {{}})
time.sleep(60)
"""
HEAD = """
import json, os, signal, sys, time
signal.alarm(60)
def write(path, content):
    open(path + '~', 'w').write(json.dumps(content))
    os.replace(path + '~', path)
"""


class Bench:
    """A sweep folder whose jobs do what the test says; `text` is what was shown."""

    def __init__(self, path: Path, lock: int) -> None:
        self.folder = SweepFolder(path)
        self.lock = lock
        self.shown = io.StringIO()

    def jobs(self, *, seeds: int, suite: bool = False, **code: str) -> list[Job]:
        """Jobs of seeds 0, 1, ... whose commands are `code` by name, e.g. train_0=FAIL."""
        runs = Grid(methods=("clean",), seeds=tuple(range(seeds))).runs(self.folder.path)
        self.folder.record(runs)
        jobs = []
        for job in plan(runs, suite=Suite(name="quick") if suite else None):
            usual = TRAIN if job.stage == "train" else EVALUATE
            body = code.get(f"{job.stage}_{job.run.seed}", usual).format(
                run=job.run.folder, out=self.folder.path
            )
            jobs.append(replace(job, command=(sys.executable, "-S", "-c", HEAD + body)))
        return jobs

    def drive(self, jobs: list[Job], *, slots: int = 2) -> Outcome:
        launcher = LocalLauncher(slots, lock=self.lock)
        display = Display(Console(file=self.shown, width=200))
        return drive(jobs, launcher, self.folder.logs_dir, display)

    @property
    def text(self) -> str:
        return self.shown.getvalue()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with SweepFolder(tmp_path).lock(0, say=print) as lock:
        yield Bench(tmp_path, lock)


def states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


def test_all_jobs_are_carried_out_in_order_and_shown(bench: Bench) -> None:
    jobs = bench.jobs(seeds=2, suite=True)
    outcome = bench.drive(jobs, slots=1)
    assert outcome == Outcome()
    assert states(jobs) == ["done"] * 4
    order = [job.name for job in jobs]
    assert re.findall(r"^(\S+): started", bench.text, re.MULTILINE) == order
    assert re.findall(r"^(\S+): done", bench.text, re.MULTILINE) == order
    assert bench.text.startswith("4 jobs, 0 of them done\n")
    assert bench.text.endswith("4 of 4 jobs done\n")


def test_what_is_done_is_not_done_again(bench: Bench) -> None:
    jobs = bench.jobs(seeds=2)
    bench.drive(jobs)
    again = bench.jobs(seeds=3, train_0=FAIL, train_1=FAIL)
    assert bench.drive(again) == Outcome()
    assert "3 jobs, 2 of them done" in bench.text
    assert states(again) == ["done"] * 3


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (FAIL, "train: error: diverged (exit status 1)"),
        (SILENT, "killed by signal 9"),
        (FORGETFUL, "all is well (exit status 0)"),
    ],
)
def test_a_job_fails_by_its_last_line_and_the_others_go_on(
    bench: Bench, code: str, line: str
) -> None:
    jobs = bench.jobs(seeds=2, suite=True, train_0=code)
    outcome = bench.drive(jobs)
    assert outcome.failed == {"clean-seed0.train": line}
    assert outcome.blocked == {"clean-seed0.evaluate": "clean-seed0.train"}
    assert states(jobs) == ["new", "new", "done", "done"]
    log = bench.folder.logs_dir / "clean-seed0.train.log"
    assert f"clean-seed0.train: FAILED, {line}; log {log}" in bench.text
    assert log.read_text().startswith("# 20")


def test_a_job_that_cannot_be_started_has_failed(bench: Bench) -> None:
    jobs = bench.jobs(seeds=2)
    jobs[0] = replace(jobs[0], command=("/nowhere/python",))
    outcome = bench.drive(jobs)
    assert list(outcome.failed) == ["clean-seed0.train"]
    assert "No such file" in outcome.failed["clean-seed0.train"]
    assert states(jobs) == ["new", "done"]


def test_jobs_share_the_slots(bench: Bench) -> None:
    """Three jobs that each wait for a second one to be there could not end in fewer than two slots."""
    meet = TRAIN + "import glob\nwhile len(glob.glob('{out}/clean-seed*/')) < 2: time.sleep(0.01)\n"
    jobs = bench.jobs(seeds=3, train_0=meet, train_1=meet, train_2=meet)
    assert bench.drive(jobs, slots=2) == Outcome()
    started = [m.start() for m in re.finditer("started", bench.text)]
    first_done = bench.text.index("done in")
    assert [place < first_done for place in started] == [True, True, False]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_jobs_save_and_starts_no_more(bench: Bench, signum: int) -> None:
    signaller = (
        f"while not os.path.exists('{{out}}/clean-seed0.running'): time.sleep(0.01)\n"
        f"os.kill(os.getppid(), {int(signum)})\n" + ENDLESS
    )
    jobs = bench.jobs(seeds=3, train_0=ENDLESS, train_1=signaller)
    outcome = bench.drive(jobs)
    assert outcome == Outcome(signum=signum)
    assert states(jobs) == ["new"] * 3
    assert (bench.folder.path / "clean-seed0.saved").exists()
    assert bench.text.count("started") == 2
    assert bench.text.count(": stopped") == 2


def test_jobs_end_when_the_sweep_is_killed(bench: Bench) -> None:
    """Killed, not signalled: nothing of the sweep itself can run any more."""
    (job,) = bench.jobs(seeds=1, train_0=ENDLESS)
    path = bench.folder.path
    child = os.fork()
    if not child:
        bench.drive([job])
        os._exit(0)
    wait_until((path / "clean-seed0.running").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until((path / "clean-seed0.saved").exists)


def test_a_job_gets_its_share_of_the_machine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert share(0, 1, gpus=[]) == {"OMP_NUM_THREADS": "8"}
    assert share(1, 3, gpus=["0"]) == {"OMP_NUM_THREADS": "2"}
    assert share(0, 16, gpus=[])["OMP_NUM_THREADS"] == "1"
    gpus = [share(slot, 3, gpus=["4", "6"])["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert gpus == ["4", "6", "4"]
    tell = "write('{run}.json', os.environ.get('OMP_NUM_THREADS'))\n" + TRAIN
    bench.drive(bench.jobs(seeds=1, train_0=tell), slots=4)
    assert json.loads((bench.folder.path / "clean-seed0.json").read_text()) == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share(0, 1, gpus=[]) == {"OMP_NUM_THREADS": "5"}


def test_a_line_says_how_long_the_jobs_left_will_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("iaat_fast.sweep.display.time.monotonic", lambda: now[0])
    display = Display(Console(file=bench.shown, width=100))
    first, second, *_ = bench.jobs(seeds=2)
    display.start(total=5, done=1)
    now[0] += 40
    display.done(first)
    now[0] += 50
    display.done(second)
    assert "2 of 5 jobs done, about 2:00 to go" in bench.text
    assert "3 of 5 jobs done, about 1:30 to go" in bench.text


@pytest.mark.slow
def test_a_terminal_shows_a_live_line_for_each_running_job(bench: Bench) -> None:
    slow = "print('epoch 1/3: loss 2.1', flush=True); time.sleep(1.5)\n" + TRAIN
    jobs = bench.jobs(seeds=1, train_0=slow)
    console = Console(file=bench.shown, width=100, force_terminal=True)
    drive(jobs, LocalLauncher(1, lock=bench.lock), bench.folder.logs_dir, Display(console))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", bench.text)
    assert re.search(r"clean-seed0.train +\d+:\d\d +epoch 1/3: loss 2.1", text)
    assert "0 of 1 jobs done, 1 running" in text
