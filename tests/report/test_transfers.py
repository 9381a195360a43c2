"""Tables of transfer: what runs' records hold of attacks crafted on each other, and saved matrices."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iaat_fast import models
from iaat_fast.evaluate import TransferMatrix
from iaat_fast.evaluate.cli import main as evaluate
from iaat_fast.evaluate.results import read_evaluation
from iaat_fast.report.build import build_report
from iaat_fast.report.cli import main as report
from iaat_fast.report.formats import Table, csv_text, latex, markdown
from iaat_fast.report.groups import group
from iaat_fast.report.records import read_records
from iaat_fast.report.transfers import transfer_tables
from iaat_fast.run_folder import RunFolder
from tests.report.made import pgd_row, save_record, save_run, share


def values(table: Table) -> dict[str, dict[str, float | None]]:
    """Accuracies in percent by source and target."""
    (section,) = table.sections
    return {
        row.method: {
            target: None if cell.value is None else round(cell.value, 9)
            for target, cell in zip(table.columns, row.cells, strict=True)
        }
        for row in section.rows
    }


@pytest.mark.slow
def test_two_runs_attacked_with_each_others_images_make_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands that a user has for it, on the digits."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        fields = {"data__name": "digits", "model__name": "digits-cnn", "run__seed": seed}
        folder = save_run(Path(str(seed)), "adv", natural=None, epochs=1, **fields)
        torch.manual_seed(seed)
        model = models.build("digits-cnn", width=4)
        state = {"model": model.state_dict(), "epsilon": torch.zeros(8), "optimizer": {}}
        folder.save_checkpoint({**state, "epoch": 1, "step": 1, "config": folder.config()})
    suite = ["--suite", "quick", "--parts", "natural", "pgd", "transfer", "--limit", "6"]
    for run, other in (("0", "1"), ("1", "0")):
        assert evaluate([run, *suite, "--against", other]) == 0
    assert report(["0", "1", "--out", "report"]) == 0
    assert capsys.readouterr().out.endswith(f"2 tables, 0 figures: {Path('report/index.html')}\n")
    (file,) = Path("report/tables").glob("transfer-*.csv")
    found = {
        (row["method"], row["column"]): row["value"]
        for row in csv.DictReader(io.StringIO(file.read_text()))
    }
    names = [f"Adversarial, ε = 8, seed {seed}" for seed in (0, 1)]
    assert set(found) == {(row, name) for row in ("natural images", *names) for name in names}
    for target, run in zip(names, ("0", "1"), strict=True):
        (path,) = (RunFolder(run).evaluation_dir).glob("quick*/results.json")
        e = read_evaluation(path)
        (transferred,) = e.of("transfer")
        (own,) = (m for m in e.of("pgd") if m.row["restarts"] == transferred.row["restarts"])
        (natural,) = e.of("natural")
        (source,) = (name for name in names if name != target)
        for row, m in (("natural images", natural), (target, own), (source, transferred)):
            assert found[row, target] == f"{100 * m.accuracy:.4f}"
    page = Path("report/index.html").read_text()
    assert f'<article id="{file.stem}">' in page
    assert "Crafted on" in page
    assert file.with_suffix(".md").is_file()
    assert file.with_suffix(".tex").is_file()


def transferred(accuracy: float, run: Path, *, eps: float = 8, **more: Any) -> dict[str, Any]:
    row = pgd_row(accuracy, 40, part="transfer", kind="transfer", eps=eps)
    return {**row, "key": f"{row['key']}-{run.name}", "surrogate": {"run": str(run), **more}}


def natural(accuracy: float) -> dict[str, Any]:
    return {"key": "natural", "kind": "natural", "part": "natural", **share(accuracy, 40)}


def runs(folder: Path, rows: list[list[dict[str, Any]]]) -> list[RunFolder]:
    """IAAT with seeds 0 and 1, and adversarial training, with these rows in their records."""
    made = [
        save_run(folder / "iaat0", "iaat", natural=None),
        save_run(folder / "iaat1", "iaat", natural=None, run__seed=1),
        save_run(folder / "adv", "adv", natural=None),
    ]
    for run, each in zip(made, rows, strict=True):
        if each:
            save_record(run, each, samples=40)
    return made


def tables_of(folders: list[RunFolder]) -> list[Table]:
    return transfer_tables(group(read_records(folders)))


def test_what_was_not_measured_is_no_number_and_other_attacks_are_other_tables(
    tmp_path: Path,
) -> None:
    at = {name: tmp_path / name for name in ("iaat0", "iaat1", "adv", "gone")}
    folders = runs(
        tmp_path,
        [
            [
                natural(0.9),
                pgd_row(0.4, 40),
                pgd_row(0.2, 40, eps=16),
                pgd_row(0.1, 40, steps=20),
                transferred(0.6, at["iaat1"]),
                transferred(0.5, at["gone"], seed=7),
                transferred(0.3, at["iaat1"], eps=16),
            ],
            [natural(0.8), transferred(0.7, at["iaat0"])],
            [natural(0.7), transferred(0.65, at["iaat0"])],
        ],
    )
    (table,) = tables_of(folders)
    zero, one, adv = "IAAT, seed 0", "IAAT, seed 1", "Adversarial, ε = 8, seed 0"
    assert table.title == "Transfer of PGD-10 × 5, ε = 8, step 2"
    assert values(table) == {
        "natural images": {adv: 70, zero: 90, one: 80},
        zero: {adv: 65, zero: 40, one: 70},
        one: {adv: None, zero: 60, one: None},
        f"{at['gone']}, seed 7": {adv: None, zero: 50, one: None},
    }


def test_saved_examples_of_one_attack_are_a_matrix_of_their_own(tmp_path: Path) -> None:
    def scored(accuracy: float, run: str) -> dict[str, Any]:
        about = {**pgd_row(0.5, 40), "crafted_on": {"run": str(tmp_path / run)}}
        return {
            **{"key": f"adversarial-{run}", "kind": "adversarial", "part": "adversarial"},
            **{"file": f"{run}.npz", "crafted_on": about, **share(accuracy, 40)},
        }

    folders = runs(
        tmp_path,
        [
            [natural(0.9), pgd_row(0.4, 40), scored(0.55, "adv")],
            [natural(0.8), scored(0.65, "adv"), scored(0.75, "iaat0")],
            [natural(0.7)],
        ],
    )
    (table,) = tables_of(folders)
    assert table.title == "Transfer of saved examples of PGD-10 × 5, ε = 8, step 2"
    assert values(table) == {
        "natural images": {"IAAT, seed 0": 90, "IAAT, seed 1": 80},
        "IAAT, seed 0": {"IAAT, seed 0": 40, "IAAT, seed 1": 75},
        "Adversarial, ε = 8, seed 0": {"IAAT, seed 0": 55, "IAAT, seed 1": 65},
    }


def test_one_run_or_attacks_of_unknown_origin_make_no_matrix(tmp_path: Path) -> None:
    one = [natural(0.9), transferred(0.6, tmp_path / "iaat1")]
    unknown = [natural(0.9), pgd_row(0.5, 40, part="transfer", kind="transfer")]
    assert tables_of(runs(tmp_path / "a", [one, [natural(0.8)], []])) == []
    assert tables_of(runs(tmp_path / "b", [unknown, unknown, unknown])) == []


@pytest.fixture
def matrix() -> TransferMatrix:
    return TransferMatrix(
        sources=("a|b", "c"),
        targets=("c", "d_1"),
        accuracies=torch.tensor([[0.5, 0.25], [0.125, 1.0]]).double(),
        natural=torch.tensor([1.0, 0.75]).double(),
        n=8,
        attack="FGSM(eps=8/255)",
    )


def test_a_saved_matrix_is_a_table_in_every_format(tmp_path: Path, matrix: TransferMatrix) -> None:
    for name in ("my matrix.json", "my-matrix.json"):
        matrix.save(tmp_path / name)
    clean = save_run(tmp_path / "clean", "clean", natural=None)
    files = [tmp_path / "my matrix.json", tmp_path / "my-matrix.json"]
    made = build_report([clean], tmp_path / "out", transfer=files)
    assert made.tables == ("transfer-my-matrix", "transfer-my-matrix-2")
    table, _ = transfer_tables([], files)
    assert values(table) == {
        "natural images": {"c": 100, "d_1": 75},
        "a|b": {"c": 50, "d_1": 25},
        "c": {"c": 12.5, "d_1": 100},
    }
    (section,) = table.sections
    assert section.rows[2].cells[0].low == pytest.approx(2.24, abs=0.01)
    text = markdown(table)
    assert "| network | crafted on | figures | c | d_1 |" in text
    assert r"| a\|b | measured | 50.00 (" in text
    assert "Transfer of FGSM(eps=8/255)" in text
    assert "on 8 images" in text
    assert r"Crafted on &  & c & d\_1 \\" in latex(table)
    assert "multicolumn" not in latex(table)
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["value"] for row in rows][:3] == ["100.0000", "75.0000", "50.0000"]
    page = made.page.read_text()
    assert page.count('<article id="transfer-my-matrix') == 2
    assert "a|b" in page


def test_bad_matrices_are_one_line_and_no_report(
    tmp_path: Path, matrix: TransferMatrix, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "clean", "clean", natural=None)
    file, out = tmp_path / "m.json", tmp_path / "out"
    matrix.save(file)
    good = json.loads(file.read_text())

    def error(content: str | None) -> str:
        file.unlink() if content is None else file.write_text(content)
        assert report([str(run.path), "--out", str(out), "--transfer", str(file)]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert str(file) in printed.err
        assert not out.exists()
        return printed.err

    for change, said in (
        ({"accuracies": [[0.5, 0.25]]}, "accuracies [1, 2], expected [2, 2]"),
        ({"natural": [1.0, 1.5]}, "natural beyond 0 to 1"),
        ({"natural": [1.0, float("nan")]}, "natural beyond 0 to 1"),
        ({"accuracies": [[0.5], [0.5, 1]]}, "a damaged transfer matrix"),
        ({"n": 0}, "n is 0, expected at least 1"),
        ({"schema": 99}, "written by a newer version"),
        ({"kind": "else"}, "no transfer matrix, expected a file of TransferMatrix.save"),
    ):
        assert said in error(json.dumps({**good, **change}))
    assert "a damaged transfer matrix" in error(
        json.dumps({k: v for k, v in good.items() if k != "n"})
    )
    assert "not readable as JSON" in error("{")
    assert "no such file" in error(None)
    matrix.save(file)
    assert report([str(run.path), "--transfer", str(file)]) == 2
    assert "--transfer: belongs to a report, give --out too" in capsys.readouterr().err
