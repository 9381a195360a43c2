"""Plots, the closing table, and runs side by side."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from iaat_fast.report import Run, RunSummary, closing_table, plot_run, read_run, summary_table
from iaat_fast.report.cli import main
from iaat_fast.run_folder import RunFolder

CONFIG: dict[str, Any] = {
    "preset": "digits",
    "method": "iaat",
    "protocol": "paper",
    "data": {"name": "digits", "path": None, "limit": None},
    "optim": {"epochs": 3, "lr": 0.1},
    "epsilon": {"gamma": 0.05},
    "run": {"seed": 0, "out": "runs/a"},
}
ATTACK = {"eps": 51 / 255, "alpha": 12.75 / 255, "steps": 10, "restarts": 5}
RESULTS: dict[str, Any] = {
    "natural_accuracy": 0.95,
    "robust_accuracy": 0.65,
    "attack": ATTACK,
    "eps_mean": 60 / 255,
    "eps_std": 5 / 255,
    "eps_min": 40 / 255,
    "eps_max": 80 / 255,
    "samples": 360,
}


def make_run(path: Path, *, method: str = "iaat", epochs: int = 3) -> RunFolder:
    folder = RunFolder(path)
    folder.create({**CONFIG, "method": method}, {})
    generator = torch.Generator().manual_seed(0)
    for epoch in range(1, epochs + 1):
        eps = (0.3 + 0.02 * epoch * torch.randn(100, generator=generator)).clamp(0)
        if method == "iaat":
            folder.save_epsilon(epoch, eps)
        folder.append_metrics(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "train_clean_accuracy": None if method == "adv" else 0.3 * epoch,
                "train_robust_accuracy": None if method == "clean" else 0.2 * epoch,
                "eps_mean": eps.mean().item(),
                "eps_std": eps.std().item(),
                "eps_min": eps.min().item(),
                "eps_max": eps.max().item(),
                "test_accuracy": 0.25 * epoch,
            }
        )
    folder.save_results(RESULTS)
    return folder


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("iaat", {"accuracy.png", "epsilon.png", "epsilon-histogram.png"}),
        ("adv", {"accuracy.png"}),
        ("clean", {"accuracy.png"}),
    ],
)
@pytest.mark.parametrize("epochs", [1, 3, 12])
def test_a_run_is_drawn_as_far_as_it_has_something(
    tmp_path: Path, method: str, expected: set[str], epochs: int
) -> None:
    folder = make_run(tmp_path, method=method, epochs=epochs)
    paths = plot_run(folder)
    assert {path.name for path in paths} == expected
    assert set(folder.plots_dir.iterdir()) == set(paths)
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_run_before_its_first_epoch_has_no_plots(tmp_path: Path) -> None:
    assert plot_run(make_run(tmp_path, epochs=0)) == []


def test_no_run_no_plots(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        plot_run(RunFolder(tmp_path))


def test_the_figures_show_the_numbers_of_the_run(tmp_path: Path) -> None:
    from iaat_fast.report.figures.radii import histograms
    from iaat_fast.report.plots import _accuracies, _radii

    folder = make_run(tmp_path, epochs=9)
    metrics = folder.metrics()

    (axes,) = _radii(metrics).axes
    (mean,) = (line for line in axes.lines if line.get_label() == "mean")
    assert mean.get_ydata() == pytest.approx([255 * row["eps_mean"] for row in metrics])
    assert list(mean.get_xdata()) == list(range(1, 10))
    assert axes.get_ylabel() == "ε (1/255)"

    (axes,) = _accuracies(metrics).axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert drawn["test, natural"] == pytest.approx([25 * row["epoch"] for row in metrics])
    assert axes.get_ylabel() == "accuracy (%)"

    (axes,) = histograms(folder.epsilon_snapshots()).axes
    labels = [patch.get_label() for patch in axes.patches]
    assert [label.split(" (")[0] for label in labels] == [f"epoch {e}" for e in (1, 4, 6, 9)]
    for patch in axes.patches:
        assert patch.get_data().values.sum() == pytest.approx(100)


def test_an_epoch_of_equal_radii_hides_no_other_by_its_bar(tmp_path: Path) -> None:
    """Which leads out of the figure, and whose label has the number of samples."""
    from iaat_fast.report.figures.radii import histograms

    folder = make_run(tmp_path, epochs=1)
    folder.save_epsilon(2, torch.full((100,), 8 / 255))
    (axes,) = histograms(folder.epsilon_snapshots()).axes
    (line,) = axes.lines
    assert line.get_label() == "epoch 2 (all 100 at 8.0)"
    assert np.unique(line.get_xdata()) == pytest.approx(8)
    stairs, bar = axes.patches
    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(8)
    assert bar.get_width() >= 0.015 * np.ptp(axes.get_xlim())
    assert axes.get_ylim()[1] < 2 * stairs.get_data().values.max()


@pytest.mark.parametrize(("radius", "right"), [(8, 16), (0.5, 1), (0, 1)])
def test_where_all_radii_are_equal_there_is_a_bar_with_the_number_of_samples(
    tmp_path: Path, radius: float, right: float
) -> None:
    from iaat_fast.report.figures.radii import histograms

    folder = make_run(tmp_path, epochs=0)
    for epoch in (1, 2, 3):
        folder.save_epsilon(epoch, torch.full((1200,), radius / 255))
    (axes,) = histograms(folder.epsilon_snapshots()).axes
    (bar,) = axes.patches
    assert (bar.get_height(), bar.get_x() + bar.get_width() / 2) == pytest.approx((100, radius))
    assert axes.get_xlim() == pytest.approx((0, right))
    assert axes.get_ylim()[1] > 100
    assert bar.get_width() == pytest.approx(right / 20)
    assert [text.get_text() for text in axes.texts] == ["1,200 samples"]
    label = f"epochs 1, 2, 3 (all 1,200 at {radius:.1f})"
    assert [text.get_text() for text in axes.figure.legends[0].texts] == [label]


def test_bars_of_close_equal_radii_do_not_overlap(tmp_path: Path) -> None:
    from iaat_fast.report.figures.radii import histograms

    folder = make_run(tmp_path, epochs=0)
    for epoch, radius in ((1, 8.0), (2, 8.1), (3, 8.1)):
        folder.save_epsilon(epoch, torch.full((100,), radius / 255))
    (axes,) = histograms(folder.epsilon_snapshots()).axes
    one, other = axes.patches
    assert one.get_x() + one.get_width() < other.get_x()
    labels = [text.get_text() for text in axes.figure.legends[0].texts]
    assert labels == ["epoch 1 (all 100 at 8.0)", "epochs 2, 3 (all 100 at 8.1)"]


def test_plotting_touches_no_global_state_of_matplotlib(tmp_path: Path) -> None:
    plot_run(make_run(tmp_path))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def rendered(summary: RunSummary) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(closing_table(summary, title="digits, iaat"))
    return capture.get()


def test_the_closing_table_is_in_percent_and_units_of_1_255() -> None:
    text = rendered(
        RunSummary(
            natural=0.975,
            robust=0.678,
            attack=ATTACK,
            eps_mean=60.5 / 255,
            eps_std=5 / 255,
            eps_min=40 / 255,
            eps_max=80.25 / 255,
        )
    )
    assert "digits, iaat" in text
    assert "97.50%" in text
    assert "PGD-10 × 5 at ε = 51/255" in text
    assert "67.80%" in text
    assert "60.50 ± 5.00" in text
    assert "40.00 – 80.25" in text


def test_a_method_without_radii_of_its_own_shows_none() -> None:
    text = rendered(RunSummary(natural=0.9, robust=0.0, attack=ATTACK))
    assert "ε memory" not in text
    assert "±" not in text


def run(name: str, seed: int, natural: float, robust: float, **changes: Any) -> Run:
    """A run of `method=iaat` unless changed; other changes are of flat configuration fields."""
    flat = {
        "method": "iaat",
        "data.name": "digits",
        "data.path": None,
        "optim.lr": 0.1,
        "epsilon.warmup_epochs": 5,
        "run.seed": seed,
        "run.out": name,
    }
    results = copy.deepcopy(RESULTS) | {"natural_accuracy": natural, "robust_accuracy": robust}
    if changes.get("method") == "clean":
        results |= {"eps_mean": None, "eps_std": None}
    return Run(name=name, config=flat | changes, results=results)


def test_runs_are_averaged_over_seeds_by_method() -> None:
    text = summary_table(
        [
            run("a", 0, 0.90, 0.60),
            run("b", 0, 0.99, 0.00, method="clean"),
            run("c", 1, 0.92, 0.64, **{"run.out": "elsewhere", "data.path": "there"}),
        ]
    )
    head, _, iaat, clean, _, note = text.splitlines()
    assert "PGD-10 × 5 at ε = 51/255 (%)" in head
    # The sample standard deviation of 90, 92 is sqrt(2), of 60, 64 sqrt(8).
    assert iaat == "| iaat | 2 | 91.00 ± 1.41 | 62.00 ± 2.83 | 60.00 ± 0.00 | 5.00 ± 0.00 |"
    assert clean == "| clean | 1 | 99.00 | 0.00 | – | – |"
    assert "360 test images" in note
    assert "12.75/255" in note


def test_variants_of_a_method_get_rows_of_their_own() -> None:
    text = summary_table(
        [run("a", 0, 0.9, 0.6), run("b", 0, 0.92, 0.55, **{"epsilon.warmup_epochs": 0})]
    )
    assert "| iaat (epsilon.warmup_epochs=5) | 1 |" in text
    assert "| iaat (epsilon.warmup_epochs=0) | 1 |" in text


def test_how_steps_were_launched_is_no_difference() -> None:
    """Runs of earlier versions have no such field."""
    runs = [run("a", 0, 0.9, 0.6), run("b", 1, 0.9, 0.6, **{"optim.graph": False})]
    assert "| iaat | 2 |" in summary_table(runs)


def test_runs_that_cannot_be_compared_are_refused() -> None:
    first = run("a", 0, 0.9, 0.6)
    with pytest.raises(ValueError, match=r"a and b differ in optim\.lr \(0\.1, 0\.2\)"):
        summary_table([first, run("b", 1, 0.9, 0.6, **{"optim.lr": 0.2})])
    other = run("b", 1, 0.9, 0.6)
    other.results["attack"]["steps"] = 100
    with pytest.raises(ValueError, match="a and b differ in attack"):
        summary_table([first, other])
    other = run("b", 1, 0.9, 0.6)
    other.results["samples"] = 100
    with pytest.raises(ValueError, match=r"samples \(360, 100\)"):
        summary_table([first, other])
    with pytest.raises(ValueError, match="iaat: the same seed twice among a, b"):
        summary_table([first, run("b", 0, 0.9, 0.6)])
    with pytest.raises(ValueError, match="none given"):
        summary_table([])


def test_the_command_prints_the_table_of_run_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run(tmp_path / name, method=name) for name in ("iaat", "adv")]
    assert main([str(folder.path) for folder in folders]) == 0
    expected = summary_table([read_run(folder) for folder in folders])
    assert capsys.readouterr().out == expected + "\n"
    assert "| iaat | 1 | 95.00 | 65.00 | 60.00 | 5.00 |" in expected


def test_the_command_answers_bad_runs_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("python -m iaat_fast.report: error: ")
        assert err.count("\n") == 1
        return err

    folder = make_run(tmp_path / "run")
    assert "no such run folder" in error(tmp_path / "gone")
    folder.results_path.write_text(json.dumps({"samples": 3}))
    assert "results.json: lacks natural_accuracy" in error(folder.path)
    folder.results_path.unlink()
    assert "did not finish" in error(folder.path)
    assert error()
    assert "--run: unknown flag" in error("--run", folder.path)
