"""From a training to a report by the commands alone: what each one measures, the last one shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iaat_fast.evaluate import read_record, recount
from iaat_fast.evaluate.cli import main as evaluate
from iaat_fast.report.cli import main as report
from iaat_fast.run_folder import RunFolder
from iaat_fast.sweep.cli import main as sweep
from iaat_fast.sweep.grid import Grid
from iaat_fast.train.cli import main as train

FLAGS = "--limit 40 --epochs 1 --batch-size 20 --width 4 --steps 2"
CLOSING = (
    "--eval-eps 8 --eval-alpha 2 --eval-steps 3 --eval-restarts 1 --no-tensorboard --device cpu"
)


def test_what_is_measured_of_a_sweep_is_in_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = tuple(f"{FLAGS} {CLOSING}".split())
    (run,) = Grid(methods=("adv",), flags=flags).runs(Path("runs"))
    folder = str(run.folder)
    assert train([*run.words, "--out", folder]) == 0
    # What training's end suggests, a second setting of that attack, and a suite.
    for words in ("--steps 5", "--steps 5 --alpha 4", "--suite quick"):
        assert evaluate([folder, "--device", "cpu", *words.split()]) == 0
    capsys.readouterr()
    line = ["--methods", "adv", "--out", "runs", "--suite", "quick", "--", *flags]
    assert sweep(line) == 0
    assert "2 jobs, 2 of them done" in capsys.readouterr().out
    assert report(["runs", "--out", "report"]) == 0

    records = {
        path.parent: read_record(path.parent)[0] for path in Path(folder).rglob("results.json")
    }
    assert sorted(content["suite"] for content in records.values()) == [
        *("closing", "pgd", "pgd", "quick")
    ]
    for name in ("weights_sha256", "data_sha256"):
        assert len({content["settings"][name] for content in records.values()}) == 1
    measured = {
        (row["steps"], row["restarts"], round(255 * row["alpha"])): row["accuracy"]
        for content in records.values()
        for row in content["measurements"]
        if row["kind"] == "pgd"
    }
    assert set(measured) == {(3, 1, 2), (5, 1, 2), (5, 1, 4), (10, 5, 2)}
    (table,) = Path("report/tables").glob("*.md")
    head, _, row = (cells for cells in table.read_text().splitlines() if cells.startswith("|"))
    shown = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    for (steps, restarts, step), accuracy in measured.items():
        text = shown[next(h for h in shown if f"PGD-{steps} × {restarts}, ε = 8, step {step}" in h)]
        assert text.startswith(f"{100 * accuracy:.2f} (")

    # Training's end is a record like the others, with what earlier versions wrote in front.
    closing = RunFolder(folder).results()
    assert closing["robust_accuracy"] == closing["measurements"][1]["accuracy"]
    assert recount(folder, range(40))["natural"]["accuracy"] == closing["natural_accuracy"]
    assert closing["eps_min"] <= closing["eps_mean"] <= closing["eps_max"]
    assert json.loads(Path("runs/sweep.json").read_text())["runs"].keys() == {run.name}
