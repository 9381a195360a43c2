"""Evaluations are read back from a run's folder, those of earlier versions too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from iaat_fast.evaluate.results import Measurement, evaluations_of, read_evaluation
from iaat_fast.run_folder import RunFolder

EARLIER = Path(__file__).parents[1] / "report" / "earlier" / "run"
"""Written by commit 45df095: `train digits`, `evaluate` with two settings of PGD, `evaluate --suite quick`."""


def test_what_earlier_versions_wrote_is_read() -> None:
    found = evaluations_of(RunFolder(EARLIER))
    assert [(e.suite, e.samples, e.rule, e.complete) for e in found] == [
        (suite, 200, "last", True) for suite in ("closing", "quick", "pgd", "pgd")
    ]
    accuracies = [[(m.kind, m.accuracy) for m in e.measurements] for e in found]
    assert accuracies == [
        [("natural", 0.92), ("pgd", 0.81)],
        [("natural", 0.92), ("pgd", 0.755)],
        [("natural", 0.92), ("pgd", 0.88), ("pgd", 0.785)],
        [("natural", 0.92), ("pgd", 0.755)],
    ]
    closing, _, two, one = found
    assert closing.measurements[1].interval == pytest.approx((0.7500, 0.8583), abs=1e-4)
    assert [m.row["eps"] * 255 for m in two.of("pgd")] == pytest.approx([8, 24])
    assert (one.seed, one.epoch) == (0, 14)
    assert one.of("pgd")[0].key == "pgd8x1-eps16"


def test_a_measurements_setting_tells_it_from_every_other() -> None:
    (attack,) = read_evaluation(EARLIER / "evaluation/quick-digits-200-seed0/results.json").of(
        "pgd"
    )

    def setting(**changes: object) -> tuple[object, ...]:
        row = {**attack.row, **changes}
        fields = {name: row[name] for name in ("key", "kind", "part", "accuracy")}
        return Measurement(**fields, interval=None, row=row, suite="mine", seed=7).setting

    assert setting() == attack.setting
    assert setting(targeted="no", accuracy=0.1, seconds=3.0, seed=3) == attack.setting
    for name, value in (
        *(("eps", 0.2), ("alpha", 0.1), ("steps", 11), ("restarts", 6), ("targeted", "random")),
        *(("part", "eps-sweep"), ("kind", "transfer")),
    ):
        assert setting(**{name: value}) != attack.setting, name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.json", "{", "not readable as JSON"),
        ("results.json", '{"samples": 3}', "not the record of an evaluation"),
        ("results.json", '{"schema": 2}', "written by a newer version"),
        ("results.json", '{"schema": 1}', "not the record of an evaluation, it lacks settings"),
        ("evaluation/digits-200-pgd8x1-eps16-alpha4-seed0.json", "{}", "not the record"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    run = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        evaluations_of(RunFolder(run))
    assert str(run / name) in str(caught.value)


def test_an_accuracy_beyond_0_and_1_is_refused(tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "natural_accuracy": 92}))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        evaluations_of(RunFolder(run))
