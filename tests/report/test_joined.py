"""All that was measured of a run is reported, or it is said what is left out: never one figure for another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.report import read_run, summary_table
from iaat_fast.report.cli import main
from iaat_fast.report.formats import Table
from iaat_fast.report.groups import group
from iaat_fast.report.records import RunRecord, read_record
from iaat_fast.report.tables import build_tables
from iaat_fast.run_folder import RunFolder
from tests.evaluate.test_results import EARLIER
from tests.report.made import cifar_rows, pgd_row, save_record, save_run


@pytest.fixture
def earlier(tmp_path: Path) -> RunFolder:
    """A run of an earlier version with four evaluations; a copy."""
    return RunFolder(shutil.copytree(EARLIER, tmp_path / "run"))


def table_of(record: RunRecord) -> Table:
    (table,) = build_tables(group([record]))
    return table


def figures(table: Table) -> dict[str, float]:
    """The measured row by the heads of its columns."""
    (row,) = (row for section in table.sections for row in section.rows if row.seeds)
    values = zip(table.heads, row.cells, strict=True)
    return {head: round(cell.value, 2) for (head, _), cell in values if cell.value is not None}


def test_a_report_joins_every_evaluation_of_a_run_of_an_earlier_version(earlier: RunFolder) -> None:
    record = read_record(earlier)
    assert record.left_out == ()
    assert figures(table_of(record)) == {
        "Natural": 92.0,
        "PGD-3 × 2, ε = 16": 81.0,
        "PGD-4 × 1, ε = 8": 88.0,
        "PGD-4 × 1, ε = 24": 78.5,
        "PGD-8 × 1, ε = 16": 75.5,
        "PGD-10 × 5, ε = 16": 75.5,
    }


def test_the_summary_has_a_column_for_every_attack_since_the_training(earlier: RunFolder) -> None:
    head, _, row, *_ = summary_table([read_run(earlier)]).splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["PGD-3 × 2 at ε = 16/255 (%)"] == "81.00"
    assert cells["PGD-4 × 1 at ε = 24/255 (%)"] == "78.50"
    assert cells["PGD-10 × 5 at ε = 16/255 (%)"] == "75.50"


def add(folder: RunFolder, name: str, **changes: Any) -> None:
    """Another record of the run: its suite's with changes of the header and, under "row", of the attack."""
    source = folder.evaluation_dir / "quick-digits-200-seed0" / "results.json"
    content = json.loads(source.read_text())
    content["measurements"][1] |= changes.pop("row", {})
    content["settings"] |= changes.pop("settings", {})
    content["data"] |= changes.pop("data", {})
    path = folder.evaluation_dir / name / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**content, "suite": "pgd", **changes}))


def test_two_step_sizes_of_one_attack_are_two_columns(earlier: RunFolder) -> None:
    add(earlier, "another", row={"alpha": 1 / 255, "accuracy": 0.5})
    found = figures(table_of(read_record(earlier)))
    assert found["PGD-10 × 5, ε = 16, step 4"] == 75.5
    assert found["PGD-10 × 5, ε = 16, step 1"] == 50.0
    assert "PGD-10 × 5 at ε = 16/255, step 1/255 (%)" in summary_table([read_run(earlier)])


def test_targeted_and_untargeted_attacks_are_two_columns(earlier: RunFolder) -> None:
    add(earlier, "another", row={"targeted": "random", "accuracy": 0.9})
    found = figures(table_of(read_record(earlier)))
    assert found["PGD-10 × 5, ε = 16"] == 75.5
    assert found["PGD-10 × 5, ε = 16, random targets"] == 90.0


def test_of_two_seeds_of_one_attack_one_is_shown_and_the_other_said(earlier: RunFolder) -> None:
    add(earlier, "another", seed=3, row={"accuracy": 0.5})
    record = read_record(earlier)
    assert figures(table_of(record))["PGD-10 × 5, ε = 16"] == 75.5
    (said,) = record.left_out
    assert "another/results.json: pgd10x5-eps16 is 50.00% with seed 3; shown is the 75.50%" in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"epoch": 7}, "epoch is 7, shown is 14"),
        ({"rule": "any"}, "rule is any, shown is last"),
        ({"data": {"samples": 100}}, "samples is 100, shown is 200"),
        ({"settings": {"weights_sha256": "0"}}, "weights differ"),
        ({"settings": {"data_sha256": "0"}}, "images differ"),
    ],
)
def test_what_was_measured_of_something_else_is_left_out_and_said(
    earlier: RunFolder, changes: dict[str, Any], why: str
) -> None:
    add(earlier, "another", row={"steps": 50, "accuracy": 0.5}, **changes)
    record = read_record(earlier)
    assert not any("PGD-50" in head for head in figures(table_of(record)))
    (said,) = record.left_out
    assert said == f"{earlier.path}, evaluation/another/results.json: left out, its {why}"


def test_an_evaluation_of_earlier_weights_is_no_longer_shown(earlier: RunFolder) -> None:
    add(earlier, "later", epoch=20, settings={"weights_sha256": "0"}, row={"accuracy": 0.5})
    record = read_record(earlier)
    assert figures(table_of(record)) == {"Natural": 92.0, "PGD-10 × 5, ε = 16": 50.0}
    assert len(record.left_out) == 4


def test_the_papers_column_takes_the_attack_most_like_the_papers(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    rows = [row for row in cifar_rows(0.8, 0.4, 40) if row["key"] != "pgd100x5-eps8"]
    for restarts, alpha, left in ((1, 2, 0.6), (5, 1, 0.5), (5, 2, 0.3)):
        row = pgd_row(left, 40, steps=100, restarts=restarts)
        rows.append({**row, "key": f"{restarts}-{alpha}", "alpha": alpha / 255})
    save_record(folder, rows, samples=40)
    table = table_of(read_record(folder))
    assert figures(table)["PGD-100"] == 30.0
    assert table.notes == (
        "On generated corruptions, made from the test images by the project; not the official files.",
    )


def test_autoattack_stands_under_its_radius(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    rows = cifar_rows(0.8, 0.4, 40)
    for eps, left in ((2, 0.6), (8, 0.3)):
        key = {"key": f"autoattack-eps{eps}", "kind": "autoattack", "part": "autoattack"}
        rows.append({**pgd_row(left, 40, eps=eps), **key})
    key = {"key": "autoattack-rand-eps8", "kind": "autoattack", "part": "autoattack-rand"}
    rows.append({**pgd_row(0.2, 40, eps=8), **key, "version": "rand"})
    save_record(folder, rows, samples=40)
    found = figures(table_of(read_record(folder)))
    assert (found["AutoAttack, ε = 2"], found["AutoAttack, ε = 8"]) == (60.0, 30.0)
    assert found["AutoAttack (rand), ε = 8"] == 20.0


def test_a_curve_is_of_one_record(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat")
    more = pgd_row(0.3, 40, eps=10, part="eps-sweep") | {"alpha": 1 / 255}
    save_record(folder, [more], samples=40, suite="quick", complete=False)
    record = read_record(folder)
    assert record.evaluation is not None
    sweep = record.evaluation.of("pgd", "eps-sweep")
    assert {m.row["alpha"] for m in sweep} == {2 / 255}
    assert any("another eps-sweep is shown" in text for text in record.left_out)


def test_the_command_says_what_it_leaves_out(
    earlier: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(earlier, "another", rule="any")
    for words in ([], ["--out", str(tmp_path / "out")]):
        assert main([str(earlier.path), *words]) == 0
        assert "warning: " in (err := capsys.readouterr().err)
        assert "its rule is any, shown is last" in err
    assert "its rule is any, shown is last" in (tmp_path / "out" / "index.html").read_text()


def sweep_of(path: Path) -> list[Path]:
    """The folder of a sweep with two finished runs and one under way."""
    runs = [
        RunFolder(shutil.copytree(EARLIER, path / name)) for name in ("adv-seed0", "iaat-seed0")
    ]
    config = runs[0].config()
    runs[0].config_path.write_text(json.dumps({**config, "method": "adv"}))
    RunFolder(path / "iaat-seed1").create({**config, "run": {**config["run"], "seed": 1}}, {})
    for name in ("sweep.json", "sweep.lock"):
        (path / name).write_text("{}")
    for name in ("logs", "report"):
        (path / name).mkdir()
    return [run.path for run in runs]


def test_a_sweeps_folder_stands_for_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sweep_of(tmp_path / "runs")
    assert main([str(run) for run in runs]) == 0
    expected = capsys.readouterr().out
    assert main([str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert "| adv | 1 | 92.00 | 81.00 |" in out
    assert err.endswith("runs/iaat-seed1: left out, its training has not ended\n")


@pytest.mark.slow
def test_all_that_lies_in_a_sweeps_folder_may_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a shell makes it of `runs/*`."""
    sweep_of(tmp_path / "runs")
    entries = sorted(str(path) for path in (tmp_path / "runs").iterdir())
    assert len(entries) == 7
    assert main([*entries, "--out", str(tmp_path / "out")]) == 0
    assert "iaat-seed1: not evaluated" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("options", [[], ["--out", "out"]])
def test_what_is_no_run_is_refused_in_one_line(
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep_of(Path("runs"))
    Path("thesis/logs").mkdir(parents=True)
    Path("runs/notes.txt").write_text("mine")
    for path, said in (
        ("gone", "gone: no such run folder"),
        ("thesis", "thesis: exists and is no run folder (no config.json in it)"),
        ("thesis/logs", "thesis/logs: exists and is no run folder"),
        ("runs/notes.txt", "runs/notes.txt: exists and is no run folder"),
    ):
        assert main(["runs/iaat-seed0", path, *options]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not Path("out").exists()


def test_a_report_is_not_written_into_a_folder_of_something_else(
    earlier: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    for out in (tmp_path / "thesis", earlier.path):
        before = sorted(out.rglob("*"))
        assert main([str(earlier.path), "--out", str(out)]) == 2
        assert "exists and is no report's folder (no report.json" in capsys.readouterr().err
        assert sorted(out.rglob("*")) == before
