"""Tables: the paper's figures, the measured ones, what is said about them, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from iaat_fast.report import paper
from iaat_fast.report.formats import Cell, Row, Table, csv_text, latex, markdown
from iaat_fast.report.groups import group
from iaat_fast.report.records import read_records
from iaat_fast.report.tables import build_tables
from iaat_fast.run_folder import RunFolder
from tests.report.made import cifar_rows, pgd_row, save_record, save_run, share


def tables_of(*folders: RunFolder) -> dict[int | None, Table]:
    return {table.number: table for table in build_tables(group(read_records(folders)))}


def row_of(table: Table, method: str, *, measured: bool = True) -> Row:
    (row,) = (
        row
        for section in table.sections
        for row in section.rows
        if row.method == method and (row.seeds is not None) is measured
    )
    return row


def cell_of(table: Table, method: str, column: str, *, measured: bool = True) -> Cell:
    return row_of(table, method, measured=measured).cells[table.columns.index(column)]


def test_the_papers_figures_agree_with_what_its_text_says_of_them() -> None:
    def gain(table: int, network: str, method: str, over: str, column: str) -> float:
        rows = paper.figures(table, network)
        return round(rows[method][column] - rows[over][column], 2)

    # Section 4.1 and 4.2 of the paper, in words.
    assert gain(1, "resnet18", "iaat", "adv", "natural") == 4.06
    assert gain(1, "wrn32-10", "iaat", "adv", "natural") == 4.49
    assert gain(2, "resnet18", "iaat", "adv", "natural") == 8.79
    assert gain(2, "wrn32-10", "iaat", "adv", "natural") == 9.22
    for network, drop in (
        ("imagenet-resnet50", 25),
        ("imagenet-resnet101", 22),
        ("imagenet-resnet152", 20),
    ):
        assert round(-gain(3, network, "adv", "clean", "natural")) == drop
        assert gain(3, network, "iaat", "adv", "natural") > 9.8
        assert gain(3, network, "iaat", "adv", "mce") < 0 < gain(3, network, "iaat", "adv", "eps8")
    assert 12 < -gain(3, "imagenet-resnet50", "iaat", "adv", "eps16") < 14


def test_the_papers_tables_repeat_each_other_as_they_are_printed() -> None:
    for network in ("resnet18", "wrn32-10"):
        first, fourth, sixth = (paper.figures(n, network)["iaat"] for n in (1, 4, 6))
        differ = {c for c in first if first[c] != fourth[c]}
        # The paper's own slip, which is said with the figure.
        assert differ == ({"natural"} if network == "wrn32-10" else set())
        assert {c: fourth[c] for c in sixth} == sixth
        assert paper.figures(2, network)["iaat"] == paper.figures(5, network)["iaat"]
    for table, rows in paper.TABLES.items():
        lengths = {len(values) for methods in rows.values() for values in methods.values()}
        assert lengths == {6 if table in (1, 3, 4) else 5}


def test_a_single_run_has_its_interval_and_several_seeds_their_deviation(tmp_path: Path) -> None:
    naturals = (0.8, 0.85, 0.9)
    folders = [
        save_run(tmp_path / f"iaat{seed}", "iaat", natural=natural, run__seed=seed)
        for seed, natural in enumerate(naturals)
    ]
    table = tables_of(*folders, save_run(tmp_path / "adv", "adv", natural=0.75))[1]
    cell = cell_of(table, "IAAT", "natural")
    assert row_of(table, "IAAT").seeds == 3
    assert cell.value == pytest.approx(85)
    assert cell.std == pytest.approx(statistics.stdev(100 * n for n in naturals))
    assert cell.low is None
    single = cell_of(table, "Adversarial, ε = 8", "natural")
    # Wilson by hand: 30 of 40, z = 1.959964.
    z, n, p = 1.959963984540054, 40, 0.75
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (single.low, single.high) == pytest.approx(
        (100 * (middle - half), 100 * (middle + half))
    )
    assert single.std is None


def test_the_papers_rows_stand_below_the_measured_ones(tmp_path: Path) -> None:
    table = tables_of(save_run(tmp_path / "a", "iaat"))[1]
    (section,) = table.sections
    assert [(row.method, row.seeds) for row in section.rows] == [
        ("Clean", 0),
        ("Clean", None),
        ("Adversarial, ε = 8", 0),
        ("Adversarial, ε = 8", None),
        ("IAAT", 1),
        ("IAAT", None),
    ]
    assert cell_of(table, "IAAT", "transfer", measured=False).value == 59.87
    assert cell_of(table, "Clean", "natural").value is None


def test_each_table_appears_when_a_run_has_something_for_it(tmp_path: Path) -> None:
    iaat = save_run(tmp_path / "iaat", "iaat")
    assert set(tables_of(iaat)) == {1}
    cold = save_run(tmp_path / "cold", "iaat", epsilon__warmup_epochs=0)
    mixup = save_run(tmp_path / "mixup", "mixup")
    tables = tables_of(iaat, cold, mixup)
    assert set(tables) == {1, 4, 6}
    names = {
        n: [r.method for s in t.sections for r in s.rows if r.seeds] for n, t in tables.items()
    }
    assert names == {1: ["IAAT"], 4: ["IAAT (no warm-up)", "IAAT"], 6: ["Mixup", "IAAT"]}
    assert tables_of(save_run(tmp_path / "none", "iaat", natural=None)) == {}


def test_the_same_network_on_two_data_sets_makes_two_tables(tmp_path: Path) -> None:
    ten = save_run(tmp_path / "ten", "iaat")
    hundred = save_run(tmp_path / "hundred", "iaat", natural=None, data__name="cifar100")
    save_record(hundred, cifar_rows(0.5, 0.2, 40), samples=40, dataset="cifar100")
    tables = tables_of(ten, hundred)
    assert set(tables) == {1, 2}
    assert cell_of(tables[2], "IAAT", "pgd10").value == pytest.approx(20)
    assert cell_of(tables[2], "IAAT", "natural", measured=False).value == 63.90


def test_imagenet_is_table_3_by_radius_and_with_mce(tmp_path: Path) -> None:
    folder = save_run(
        tmp_path / "a",
        "iaat",
        natural=None,
        data__name="imagenet",
        model__name="imagenet-resnet50",
        model__width=None,
    )
    rows = [{"key": "natural", "kind": "natural", "part": "natural", **share(0.6, 40)}]
    for eps, left in ((4, 0.5), (8, 0.45), (12, 0.4), (16, 0.2)):
        row = pgd_row(left, 40, steps=1000, restarts=2, eps=eps)
        rows.append(row | {"targeted": "random", "alpha": 1 / 255})
    corruptions = {"key": "corruptions", "kind": "corruptions", "part": "corruptions", "types": 15}
    rows.append(corruptions | {"mean_accuracy": 0.3, "mce": 88.5, "source": "official"})
    save_record(folder, rows, samples=40, dataset="imagenet")
    table = tables_of(folder)[3]
    cells = [cell.value for cell in row_of(table, "IAAT").cells]
    assert cells == pytest.approx([60, 50, 45, 40, 20, 88.5])
    assert cell_of(table, "IAAT", "eps16", measured=False).value == 22.72
    assert not any(marks for _, marks in table.heads)
    assert "PGD-1000 × 2 at ε = 4, step 1, random targets; PGD-1000 × 2 at ε = 8" in table.caption


def test_a_method_the_report_does_not_know_is_shown_by_its_name(tmp_path: Path) -> None:
    table = tables_of(save_run(tmp_path / "a", "iaat"), save_run(tmp_path / "b", "brand-new"))[1]
    assert cell_of(table, "brand-new", "natural").value == pytest.approx(80)


def test_a_data_set_the_paper_does_not_have_gets_a_table_of_what_was_measured(
    tmp_path: Path,
) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None, data__name="digits")
    results = {
        "natural_accuracy": 0.9,
        "robust_accuracy": 0.5,
        "attack": {"eps": 51 / 255, "alpha": 12.75 / 255, "steps": 10, "restarts": 5},
        "samples": 360,
    }
    folder.save_results(results)
    table = tables_of(folder)[None]
    assert [head for head, _ in table.heads] == ["Natural", "PGD-10 × 5, ε = 51"]
    assert "closes the training" in " ".join(table.notes)


@pytest.mark.parametrize(
    ("changes", "samples", "said"),
    [
        ({}, 40, "width 4"),
        ({"data__limit": 5000}, 40, "the first 5,000 training images"),
        (
            {},
            40,
            "PGD-10 × 5, PGD-100 × 5, PGD-1000 × 2, transferred PGD-1000 × 2 at ε = 8, step 2",
        ),
        ({"optim__epochs": 15}, 40, "15 epochs (the paper: 200)"),
        ({}, 40, "Evaluated on 40 test images (the paper: 10,000)"),
        ({"protocol": "released"}, 40, "protocol released"),
    ],
)
def test_the_caption_says_on_what_was_measured(
    tmp_path: Path, changes: dict[str, Any], samples: int, said: str
) -> None:
    protocol = changes.pop("protocol", None)
    folder = save_run(tmp_path / "a", "iaat", samples=samples, **changes)
    if protocol:
        config = folder.config() | {"protocol": protocol}
        folder.config_path.write_text(json.dumps(config))
    table = tables_of(folder)[1]
    assert said in table.caption
    assert "Not the paper's setting" in table.caption


def test_the_papers_own_setting_is_not_called_another(tmp_path: Path) -> None:
    folder = save_run(
        tmp_path / "a", "iaat", samples=10_000, model__width=None, optim__epochs=200, epochs=1
    )
    assert "Not the paper's" not in tables_of(folder)[1].caption


def test_footnotes_say_what_a_figure_stands_on(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    rows = cifar_rows(0.8, 0.4, 40)
    rows[1] |= {"restarts": 1, "zero_gradient_entries": 4, "gradient_entries": 5}
    rows[-1] |= {"complete": False, "types": 17, "missing": ["fog (no file)", "snow (no file)"]}
    save_record(folder, rows, samples=40, complete=False)
    table = tables_of(folder)[1]
    notes = "\n".join(table.notes)
    assert "generated corruptions" in notes
    assert "17 types, without fog (no file); snow (no file)" in notes
    assert f"not complete: {len(rows)} measurements" in notes
    assert "PGD-10 measured with restarts = 1 (the paper: 5)." in notes
    assert "80% of its gradient entries were zero" in notes
    marks = cell_of(table, "IAAT", "corruptions").marks
    assert {table.notes[mark - 1][:12] for mark in marks} >= {"On generated", "Corruptions "}


def test_official_corruptions_have_no_footnote(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    save_record(folder, cifar_rows(0.8, 0.4, 40, source="official"), samples=40)
    assert tables_of(folder)[1].notes == ()


def test_of_several_evaluations_the_complete_one_with_the_most_samples_is_taken(
    tmp_path: Path,
) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=0.5)
    save_record(folder, cifar_rows(0.6, 0.3, 20), samples=20)
    save_record(folder, cifar_rows(0.9, 0.3, 100), samples=100, complete=False)
    save_record(folder, cifar_rows(0.7, 0.3, 200), samples=200, dataset="cifar100")
    assert cell_of(tables_of(folder)[1], "IAAT", "natural").value == pytest.approx(50)
    (record,) = read_records([folder], evaluation="cifar-cifar10-20-seed0")
    assert record.evaluation is not None
    assert record.evaluation.samples == 20
    with pytest.raises(FileNotFoundError, match="no evaluation of that name"):
        read_records([folder], evaluation="elsewhere")


def test_runs_that_were_not_measured_the_same_way_are_refused_by_name(tmp_path: Path) -> None:
    first = save_run(tmp_path / "first", "iaat")

    def refused(other: RunFolder, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            tables_of(first, other)
        assert str(first.path) in str(caught.value)
        assert str(other.path) in str(caught.value)

    refused(save_run(tmp_path / "images", "adv", samples=20), r"samples \(20, 40\)")
    refused(save_run(tmp_path / "lr", "adv", optim__lr=0.2), r"optim\.lr \(0\.1, 0\.2\)")
    refused(save_run(tmp_path / "limit", "adv", data__limit=9), r"data\.limit \(None, 9\)")
    refused(save_run(tmp_path / "seed", "iaat"), "the same method with the same seed, 0")
    for name, changes in (("restarts", {"restarts": 2}), ("steps", {"alpha": 1 / 255})):
        other = save_run(tmp_path / name, "adv", natural=None)
        rows = cifar_rows(0.8, 0.4, 40)
        rows[1] |= changes
        save_record(other, rows, samples=40)
        refused(
            other, r"differ in PGD-10 \(PGD-10 × \d, ε = 8, step \d, .*PGD-10 × 5, ε = 8, step 2,"
        )
    other = save_run(tmp_path / "rule", "adv", natural=None)
    save_record(other, cifar_rows(0.8, 0.4, 40), samples=40, rule="any")
    refused(other, r"rule \(any, last\)")


def test_how_steps_were_launched_makes_no_variant(tmp_path: Path) -> None:
    """Runs of earlier versions have no such field."""
    runs = [
        save_run(tmp_path / "earlier", "clean"),
        save_run(tmp_path / "on", "clean", run__seed=1, optim__graph=True),
        save_run(tmp_path / "off", "clean", run__seed=2, optim__graph=False),
    ]
    assert row_of(tables_of(*runs)[1], "Clean").seeds == 3


def test_fields_a_method_does_not_look_at_make_no_variant(tmp_path: Path) -> None:
    runs = [
        save_run(tmp_path / f"{seed}", "clean", run__seed=seed, attack__eps=eps / 255)
        for seed, eps in ((0, 2), (1, 8))
    ]
    assert row_of(tables_of(*runs)[1], "Clean").seeds == 2


@pytest.mark.parametrize(
    ("method", "field", "variants"),
    [("trades", "trades_beta", 2), ("adv", "trades_beta", 1), ("mart", "trades_beta", 1)],
)
def test_a_baselines_own_fields_make_variants_of_it_alone(
    tmp_path: Path, method: str, field: str, variants: int
) -> None:
    folders = [save_run(tmp_path / f"{seed}", method, run__seed=seed) for seed in (0, 1)]
    for beta, folder in enumerate(folders, start=5):
        config = folder.config() | {"baseline": {field: beta}}
        folder.config_path.write_text(json.dumps(config))
    (found,) = group(read_records(folders))
    assert len(found.variants) == variants


def test_runs_with_perturbed_weights_are_a_method_of_their_own(tmp_path: Path) -> None:
    """The second has what this version records, the first what earlier ones did: one setting, two seeds."""
    folders = [save_run(tmp_path / f"{seed}", "adv", run__seed=seed) for seed in range(4)]
    for folder, gamma in zip(folders[1:], (0.0, 0.005, 0.01), strict=True):
        config = folder.config() | {"baseline": {"awp_gamma": gamma, "awp_warmup_epochs": 0}}
        folder.config_path.write_text(json.dumps(config))
    (found,) = group(read_records(folders))
    assert [(variant.name, len(variant.runs)) for variant in found.variants] == [
        ("Adversarial, ε = 8", 2),
        ("Adversarial + AWP, ε = 8, baseline.awp_gamma = 0.005", 1),
        ("Adversarial + AWP, ε = 8, baseline.awp_gamma = 0.01", 1),
    ]


def test_single_step_training_is_named_by_its_noise_and_projection(tmp_path: Path) -> None:
    settings = [(2.0, False), (1.0, True), (2.0, True)]
    folders = [save_run(tmp_path / f"{seed}", "nfgsm", run__seed=seed) for seed in range(3)]
    for folder, (noise, project) in zip(folders, settings, strict=True):
        own = {"nfgsm_noise": noise, "nfgsm_step": 1.25, "nfgsm_project": project}
        folder.config_path.write_text(json.dumps(folder.config() | {"baseline": own}))
    (found,) = group(read_records(folders))
    assert [variant.name for variant in found.variants] == [
        "Fast-AT",
        "N-FGSM, baseline.nfgsm_project = False",
        "N-FGSM, baseline.nfgsm_project = True",
    ]


def test_of_several_radii_the_papers_stands_in_its_column(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    rows = cifar_rows(0.8, 0.4, 40)
    rows.insert(1, pgd_row(0.7, 40, eps=2))
    save_record(folder, rows, samples=40)
    table = tables_of(folder)[1]
    assert cell_of(table, "IAAT", "pgd10").value == pytest.approx(40)
    rows = [row for row in rows if row["key"] != "pgd10x5-eps8"]
    save_record(folder, rows, samples=40)
    table = tables_of(folder)[1]
    assert cell_of(table, "IAAT", "pgd10").value == pytest.approx(70)
    assert "PGD-10 measured with ε = 2 (the paper: 8)." in table.notes


def test_corruptions_of_which_none_was_there_are_not_measured(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    rows = cifar_rows(0.8, 0.4, 40)
    rows[-1] |= {"mean_accuracy": None, "types": 0}
    save_record(folder, rows, samples=40)
    assert cell_of(tables_of(folder)[1], "IAAT", "corruptions").value is None


def test_another_width_is_another_network(tmp_path: Path) -> None:
    wide = save_run(tmp_path / "wide", "iaat", model__width=8)
    table = tables_of(save_run(tmp_path / "slim", "iaat"), wide)[1]
    assert [section.network for section in table.sections] == [
        "ResNet-18, width 4",
        "ResNet-18, width 8",
    ]


def damage_config(folder: RunFolder) -> Path:
    folder.config_path.write_text("{")
    return folder.config_path


def damage_metrics(folder: RunFolder) -> Path:
    folder.metrics_path.write_text("{\n" + folder.metrics_path.read_text())
    return folder.metrics_path


def damage_record(folder: RunFolder) -> Path:
    path = save_record(folder, cifar_rows(0.8, 0.4, 40), samples=40)
    path.write_text(path.read_text()[:200])
    return path


def damage_accuracy(folder: RunFolder) -> Path:
    rows = cifar_rows(0.8, 0.4, 40)
    rows[0]["accuracy"] = 80
    return save_record(folder, rows, samples=40)


def damage_row(folder: RunFolder) -> Path:
    rows = cifar_rows(0.8, 0.4, 40)
    del rows[1]["alpha"]
    return save_record(folder, rows, samples=40)


@pytest.mark.parametrize(
    "damage", [damage_config, damage_metrics, damage_record, damage_accuracy, damage_row]
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any) -> None:
    folder = save_run(tmp_path / "a", "iaat")
    path = damage(folder)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_records([folder])


def test_a_record_of_another_schema_is_named(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat")
    path = save_record(folder, [], samples=40)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(ValueError, match="written by a newer version \\(schema 2"):
        read_records([folder])


def test_csv_holds_every_figure_and_markdown_and_latex_have_rows_of_equal_length(
    tmp_path: Path,
) -> None:
    runs = [save_run(tmp_path / f"iaat{s}", "iaat", run__seed=s) for s in (0, 1)]
    table = tables_of(*runs, save_run(tmp_path / "adv", "adv"))[1]
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    cells = [cell for s in table.sections for row in s.rows for cell in row.cells]
    assert len(rows) == len(cells)
    found = [r for r in rows if r["method"] == "IAAT" and r["column"] == "pgd100"]
    assert [(r["figures"], r["value"]) for r in found] == [
        ("measured", "37.5000"),
        ("paper", "41.1600"),
    ]
    text = markdown(table)
    assert "| IAAT | measured, 2 seeds | 80.00 ± 0.00 |" in text
    bars = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert bars == {len(table.columns) + 4}
    tex = latex(table)
    signs = {
        line.count(" & ") for line in tex.splitlines() if line.endswith(r"\\") and " & " in line
    }
    assert signs == {len(table.columns) + 1}
    assert "ε" not in tex
    assert tex.count("{") == tex.count("}")
