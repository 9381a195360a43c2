"""What there is to do, and how far it is, is read off the run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.grid import Grid, Run
from iaat_fast.sweep.jobs import Job, Suite, plan

Make = Callable[[Run], RunFolder]


def states(jobs: list[Job]) -> dict[str, str]:
    return {job.name: job.state for job in jobs}


def test_a_training_is_new_resumes_and_is_done(tmp_path: Path, begin: Make, train: Make) -> None:
    (run,) = Grid(methods=("clean",)).runs(tmp_path)
    (job,) = plan([run], suite=None)
    assert job.state == "new"
    begin(run)
    assert job.state == "resumes"
    train(run)
    assert job.state == "done"


def test_an_evaluation_is_done_when_its_record_is_complete(
    tmp_path: Path, train: Make, evaluate: Callable[..., None]
) -> None:
    runs = Grid(methods=("clean", "iaat")).runs(tmp_path)
    clean, iaat = runs
    train(clean)
    evaluate(iaat, "quick", "natural", complete=False)
    assert states(plan(runs, suite=Suite(name="quick"))) == {
        "clean-seed0.train": "done",
        "clean-seed0.evaluate": "new",
        "iaat-seed0.train": "done",
        "iaat-seed0.evaluate": "resumes",
    }
    evaluate(clean, "quick", "natural", "pgd")
    assert plan([clean], suite=Suite(name="quick"))[1].state == "done"
    assert plan([clean], suite=Suite(name="cifar"))[1].state == "new"


def test_a_record_without_the_transfer_that_is_now_possible_is_not_complete(
    tmp_path: Path, evaluate: Callable[..., None]
) -> None:
    runs = Grid(methods=("clean",), seeds=(0, 1)).runs(tmp_path)
    white_box = ("natural", "pgd", "eps-sweep", "steps-sweep")
    evaluate(runs[0], "cifar", *white_box)
    evaluate(runs[1], "cifar", *white_box, "transfer")
    alone = plan(runs[:1], suite=Suite(name="cifar"))
    both = plan(runs, suite=Suite(name="cifar"))
    assert alone[1].state == "done"
    assert states(both)["clean-seed0.evaluate"] == "resumes"
    assert states(both)["clean-seed1.evaluate"] == "done"


def test_an_evaluation_comes_after_its_training_and_that_of_its_surrogate(tmp_path: Path) -> None:
    runs = Grid(methods=("clean",), seeds=(0, 1)).runs(tmp_path)
    jobs = {job.name: job for job in plan(runs, suite=Suite(name="cifar", flags=("--limit", "9")))}
    job = jobs["clean-seed1.evaluate"]
    assert job.after == ("clean-seed1.train", "clean-seed0.train")
    assert job.command[1:] == (
        *("-m", "iaat_fast.evaluate", str(runs[1].folder), "--suite", "cifar", "--limit", "9"),
        *("--against", str(runs[0].folder)),
    )


def test_a_trained_run_outside_the_grid_is_a_surrogate_too(tmp_path: Path, train: Make) -> None:
    everything = Grid(methods=("clean",), seeds=(0, 1)).runs(tmp_path)
    first, second = everything
    assert "--against" not in plan([second], everything, suite=Suite(name="cifar"))[1].command
    train(first)
    job = plan([second], everything, suite=Suite(name="cifar"))[1]
    assert job.command[-2:] == ("--against", str(first.folder))
    assert job.after == ("clean-seed1.train",)


@pytest.mark.parametrize(
    ("suite", "transfers"),
    [
        (Suite(name="cifar"), True),
        (Suite(name="quick"), False),
        (Suite(name="imagenet"), False),
        (Suite(name="cifar", flags=("--parts", "natural")), False),
        (Suite(name="cifar", flags=("--parts", "natural", "transfer")), True),
    ],
)
def test_only_suites_with_transfer_get_a_surrogate(
    tmp_path: Path, suite: Suite, transfers: bool
) -> None:
    runs = Grid(methods=("clean",), seeds=(0, 1)).runs(tmp_path)
    jobs = [job for job in plan(runs, suite=suite) if job.stage == "evaluate"]
    assert ["--against" in job.command for job in jobs] == [transfers, transfers]


def test_a_damaged_record_is_named(tmp_path: Path, evaluate: Callable[..., None]) -> None:
    (run,) = Grid(methods=("clean",)).runs(tmp_path)
    evaluate(run, "quick", "natural")
    (path,) = RunFolder(run.folder).evaluation_dir.glob("*/results.json")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"results.json: not readable as JSON"):
        _ = plan([run], suite=Suite(name="quick"))[1].state


@pytest.mark.parametrize(
    ("flags", "made", "done"),
    [
        ("", {}, True),
        ("", {"samples": 100}, False),
        ("--limit 100", {"samples": 100}, True),
        ("--limit 500", {}, True),
        ("--limit 100 --batch-size 8", {}, True),
        ("--seed 1", {}, False),
        ("--seed 1", {"seed": 1}, True),
        ("--any-iterate", {}, False),
        ("--any-iterate", {"rule": "any"}, True),
        ("--parts natural", {}, True),
        ("--parts natural corruptions", {}, False),
    ],
)
def test_a_record_counts_for_what_is_asked(
    tmp_path: Path, evaluate: Callable[..., None], flags: str, made: dict[str, Any], done: bool
) -> None:
    (run,) = Grid(methods=("clean",)).runs(tmp_path)
    evaluate(run, "quick", "natural", "pgd", **made)
    job = plan([run], suite=Suite(name="quick", flags=tuple(flags.split())))[1]
    assert (job.state == "done") == done


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("cifat", "", "did you mean 'cifar'"),
        ("quick", "--against x", "--against: set by the sweep"),
        ("quick", "--model resnet18", "--model: set by the sweep"),
    ],
)
def test_a_bad_suite_is_refused(name: str, flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Suite(name=name, flags=tuple(flags.split()))
