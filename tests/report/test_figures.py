"""Figures: what is drawn is what the runs hold, and samples are chosen by the rule that is stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iaat_fast import data as datasets
from iaat_fast.report.figures import Drawing, TrainingImages, draw_figures, perturbed
from iaat_fast.report.figures.curves import draw_eps_sweep, draw_steps_sweep, draw_tradeoff
from iaat_fast.report.figures.drawing import dark_colours, series, svg
from iaat_fast.report.figures.galleries import draw_galleries
from iaat_fast.report.figures.perturbed import draw_perturbed
from iaat_fast.report.figures.radii import draw_histograms, draw_progress, undrawn
from iaat_fast.report.groups import Group, group
from iaat_fast.report.plots import _accuracies, _radii
from iaat_fast.report.records import read_records
from iaat_fast.run_folder import RunFolder
from tests.report.made import TRAIN, cifar_rows, save_checkpoint, save_record, save_run


def group_of(*folders: RunFolder) -> Group:
    (found,) = group(read_records(folders))
    return found


def axes_of(drawing: Drawing) -> Any:
    return drawing.figure.axes[0]


def drawn(axes: Any, label: str) -> np.ndarray:
    """The points of the line or error bar with this label, [N, 2]."""
    handles, labels = axes.get_legend_handles_labels()
    handle = handles[labels.index(label)]
    line = handle.lines[0] if hasattr(handle, "lines") else handle
    return np.asarray(line.get_xydata())


def test_the_tradeoff_joins_fixed_radii_in_their_order(tmp_path: Path) -> None:
    folders = [
        save_run(tmp_path / f"adv{eps}", "adv", natural=n, robust=r, attack__eps=eps / 255)
        for eps, n, r in ((8, 0.7, 0.45), (2, 0.9, 0.25), (4, 0.8, 0.4))
    ]
    iaat = save_run(tmp_path / "iaat", "iaat", natural=0.85, robust=0.45)
    (drawing,) = draw_tradeoff(group_of(*folders, iaat))
    axes = axes_of(drawing)
    # The strongest attack is PGD-1000; of 40 images its accuracies are multiples of 2.5 %.
    expected = [[90, 22.5], [80, 37.5], [70, 42.5]]
    np.testing.assert_allclose(drawn(axes, "Adversarial, fixed ε"), expected)
    np.testing.assert_allclose(drawn(axes, "IAAT"), [[85, 42.5]])
    assert "PGD-1000 × 2 at ε = 8" in drawing.caption
    assert {text.get_text() for text in axes.texts} == {"ε = 2", "ε = 4", "ε = 8"}
    assert "85.0 natural, 42.5 robust" in drawing.alt


def test_a_single_run_makes_no_tradeoff(tmp_path: Path) -> None:
    assert draw_tradeoff(group_of(save_run(tmp_path / "a", "iaat"))) == []


def test_a_sweep_starts_at_the_natural_accuracy_and_averages_seeds(tmp_path: Path) -> None:
    folders = []
    for seed, natural in enumerate((0.8, 0.9)):
        folder = save_run(tmp_path / f"{seed}", "iaat", natural=natural, run__seed=seed)
        folders.append(folder)
    (drawing,) = draw_eps_sweep(group_of(*folders))
    axes = axes_of(drawing)
    points = drawn(axes, "IAAT")
    np.testing.assert_allclose(points[:, 0], [0, 2, 4, 6, 8, 12, 16])
    assert points[0, 1] == pytest.approx(85)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ε of the attack (1/255)", "accuracy (%)")
    (drawing,) = draw_steps_sweep(group_of(*folders))
    assert drawn(axes_of(drawing), "IAAT")[:, 0].tolist() == [1, 5, 10, 50, 100, 500]
    assert axes_of(drawing).get_xscale() == "log"
    left, right = axes_of(drawing).get_xlim()
    assert 0.5 < left < 1, "the curve fills the axis"
    assert 500 < right < 1000


def test_of_many_fixed_radii_a_sweep_shows_the_papers_two_and_says_so(tmp_path: Path) -> None:
    folders = [
        save_run(tmp_path / f"{eps}", "adv", attack__eps=eps / 255) for eps in (1, 2, 4, 6, 8)
    ]
    (drawing,) = draw_eps_sweep(group_of(*folders))
    _, labels = axes_of(drawing).get_legend_handles_labels()
    assert labels == ["Adversarial, ε = 2", "Adversarial, ε = 8"]
    assert "at two of its radii" in drawing.caption


def test_a_run_without_a_sweep_is_left_out(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", natural=None)
    save_record(folder, cifar_rows(0.8, 0.4, 40)[:4], samples=40)
    found = group_of(folder)
    assert draw_eps_sweep(found) + draw_steps_sweep(found) == []


def test_radii_over_epochs_are_those_of_the_run(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat")
    mean, samples = draw_progress(group_of(folder))
    rows = folder.metrics()
    np.testing.assert_allclose(
        drawn(axes_of(mean), "IAAT"), [[row["epoch"], 255 * row["eps_mean"]] for row in rows]
    )
    _, labels = axes_of(samples).get_legend_handles_labels()
    assert len(labels) == 3
    snapshots = folder.epsilon_snapshots()
    for label in labels:
        number = int(label.removeprefix("sample "))
        expected = [[epoch, 255 * np.load(path)[number]] for epoch, path in snapshots.items()]
        np.testing.assert_allclose(drawn(axes_of(samples), label), expected, rtol=1e-6)
    again = axes_of(draw_progress(group_of(folder))[1]).get_legend_handles_labels()[1]
    assert labels == again


def test_a_fixed_radius_has_no_figures_of_radii(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "adv")
    folder.save_epsilon(12, torch.full((TRAIN,), 8 / 255))
    found = group_of(folder)
    assert draw_progress(found) + draw_histograms(found) == []


@pytest.mark.parametrize("method", ["iaat", "mma"])
def test_figures_left_out_because_all_radii_are_equal_are_said(tmp_path: Path, method: str) -> None:
    folder = save_run(tmp_path / "a", method, epochs=3)
    folder.save_epsilon(3, torch.full((TRAIN,), 8 / 255))
    left_out = TrainingImages()
    numbers = {drawing.number for drawing in draw_figures([group_of(folder)], left_out)}
    assert numbers.isdisjoint({2, 5, 6, 7, 8})
    assert left_out.missing == [
        "Figures 2 and 5 to 8 of CIFAR-10, ResNet-18, width 4: not drawn, "
        f"all radii of {folder.path} are equal after 3 epochs, 8.0/255"
    ]


def test_a_variant_left_out_of_figures_of_radii_is_said(tmp_path: Path) -> None:
    folders = [
        save_run(tmp_path / "warm", "iaat"),
        save_run(tmp_path / "cold", "iaat", epsilon__warmup_epochs=0, epochs=0),
        save_run(tmp_path / "adv", "adv"),
    ]
    (said,) = undrawn(group_of(*folders))
    assert said.endswith(
        "without IAAT (no warm-up), " + f"{folders[1].path} has no snapshot of its radii"
    )


def test_no_axis_leads_below_zero(tmp_path: Path) -> None:
    folders = [
        # Seeds whose mean minus their deviation is negative, and radii at 0.
        save_run(tmp_path / f"iaat{seed}", "iaat", natural=0.9, robust=robust, run__seed=seed)
        for seed, robust in enumerate((0.03, 0.15))
    ]
    for folder in folders:
        folder.save_epsilon(12, torch.linspace(0, 16 / 255, TRAIN))
    folders.append(save_run(tmp_path / "adv", "adv", natural=0.03, robust=0.0))
    found = group_of(*folders)
    drawings = [
        drawing
        for draw in (
            draw_tradeoff,
            draw_eps_sweep,
            draw_steps_sweep,
            draw_progress,
            draw_histograms,
        )
        for drawing in draw(found)
    ]
    figures = [drawing.figure for drawing in drawings]
    assert len(figures) == 6
    figures += [_accuracies(folders[0].metrics()), _radii([{**zeros(), "epoch": 1}])]
    for figure in figures:
        (axes,) = figure.axes
        assert axes.get_xlim()[0] >= 0
        assert axes.get_ylim()[0] >= 0
    bars = [axes_of(drawing).collections for drawing in drawings[:3]]
    ends = np.concatenate([np.concatenate(b.get_segments()) for found in bars for b in found])
    assert ends.min() >= 0
    assert ends[:, 1].max() <= 100


def zeros() -> dict[str, float]:
    return dict.fromkeys(("eps_mean", "eps_std", "eps_min", "eps_max"), 0.0)


def test_galleries_show_the_samples_their_captions_promise(tmp_path: Path, images: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat", data__path=str(images))
    two, six = draw_galleries(group_of(folder), TrainingImages())
    radii = 255 * np.load(list(folder.epsilon_snapshots().values())[-1])
    train = datasets.load("cifar10", images).train
    small, large = two.figure.axes
    for axes, order in ((small, np.argsort(radii)), (large, np.argsort(-radii))):
        assert len(axes.images) == 12
        for picture, text, number in zip(axes.images, axes.texts, order, strict=False):
            shown = np.asarray(picture.get_array())
            np.testing.assert_allclose(shown, train.images[number] / 255.0, atol=1e-6)
            assert text.get_text().endswith(f"ε = {radii[number]:.1f}")
    assert "12 smallest and the 12 largest" in two.caption
    ends = [
        [float(text.get_text().rpartition(" ")[2]) for text in axes.texts]
        for axes in six.figure.axes
    ]
    assert max(ends[0]) <= np.sort(radii)[23] + 0.05
    assert min(ends[1]) >= np.sort(radii)[-24] - 0.05


def test_perturbed_samples_stay_within_their_radii(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_run(tmp_path / "a", "iaat", data__path=str(images))
    save_checkpoint(folder)
    monkeypatch.setattr(perturbed, "STEPS", 2)
    (drawing,) = draw_perturbed(group_of(folder), TrainingImages())
    radii = np.sort(255 * np.load(list(folder.epsilon_snapshots().values())[-1]))
    axes = axes_of(drawing)
    texts = [text.get_text() for text in axes.texts]
    eps = np.array([float(text.rpartition("= ")[2]) for text in texts if "\nε = " in text])
    n = len(eps)
    every = np.stack([np.asarray(picture.get_array()) for picture in axes.images])
    natural, own, at8, at16 = every.reshape(4, n, *every.shape[1:])
    for shown, radius in ((at8, 8), (at16, 16)):
        moved = 255 * np.abs(shown - natural).max(axis=(1, 2, 3))
        assert (moved <= radius + 1e-3).all()
        assert (moved > radius / 2).all()
    moved = 255 * np.abs(own - natural).max(axis=(1, 2, 3))
    assert (moved <= eps + 0.05).all()
    assert {f"{radius:.1f}" for radius in eps} <= {f"{radius:.1f}" for radius in radii}


@pytest.mark.parametrize("shown", [2, 8])
def test_the_images_of_a_sample_are_in_line_below_its_heading(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, shown: int
) -> None:
    """Where they end up in the figure, after its layout; few samples are drawn as large as many."""
    folder = save_run(tmp_path / "a", "iaat", data__path=str(images))
    save_checkpoint(folder)
    monkeypatch.setattr(perturbed, "STEPS", 1)
    monkeypatch.setattr(perturbed, "_predict", lambda model, x: torch.arange(len(x)) % 2)
    monkeypatch.setattr(perturbed, "_small_and_correct", lambda *given: np.arange(shown))
    (drawing,) = draw_perturbed(group_of(folder), TrainingImages())
    axes, figure = axes_of(drawing), drawing.figure
    figure.draw_without_rendering()
    boxes = np.array([picture.get_window_extent().extents for picture in axes.images])
    rows = boxes.reshape(4, -1, 4)
    assert rows.shape[1] == shown
    assert (np.ptp(rows[:, :, [0, 2]], axis=0) < 1e-6).all(), "in line with those above and below"
    assert (np.ptp(rows[:, :, [1, 3]], axis=1) < 1e-6).all()
    width = (rows[0, 0, 2] - rows[0, 0, 0]) / figure.bbox.width
    assert 0.07 < width < 0.12
    heads = [text for text in axes.texts if "\nε = " in text.get_text()]
    assert len(heads) == shown
    for head, left, right, top in zip(
        heads, rows[0, :, 0], rows[0, :, 2], rows[0, :, 3], strict=True
    ):
        box = head.get_window_extent()
        assert abs((box.x0 + box.x1) / 2 - (left + right) / 2) < 1
        assert box.y0 > top
        assert box.y1 < figure.bbox.height


@pytest.mark.parametrize("damage", ["no checkpoint", "other images", "no images"])
def test_what_cannot_be_drawn_is_said_and_the_rest_is_drawn(
    tmp_path: Path, images: Path, damage: str
) -> None:
    folder = save_run(tmp_path / "a", "iaat", epochs=3, data__path=str(images))
    if damage != "no checkpoint":
        save_checkpoint(folder)
    path = {"no images": str(tmp_path / "gone"), "no checkpoint": None}.get(damage)
    if damage == "other images":
        path = str(tmp_path / "other.npz")
        with np.load(images) as arrays:
            np.savez(path, **{name: value[:30] for name, value in arrays.items()})
    lacking = TrainingImages(path=path)
    numbers = {drawing.number for drawing in draw_figures([group_of(folder)], lacking)}
    assert {4, 8, 9} <= numbers
    assert 7 not in numbers
    assert (2 in numbers) is (damage == "no checkpoint")
    assert any(text.startswith("Figure 7 of CIFAR-10") for text in lacking.missing)


def test_curves_differ_in_marker_and_line_and_not_in_colour_alone() -> None:
    keys = ["clean", "adv", "adv", "mixup", "trades", "new", "iaat-no-warmup", "iaat"]
    styles = [(style["marker"], style["linestyle"]) for style in series(keys)]
    assert len(set(styles)) == len(keys)


def test_an_svg_has_a_dark_rule_for_every_colour_that_changes(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", "iaat")
    (drawing,) = draw_histograms(group_of(folder))
    text = svg(drawing.figure).decode()
    head, _, body = text.partition("</style>")
    used = [colour for colour in dark_colours() if f": {colour}" in body]
    assert len(used) >= 5
    for colour in used:
        assert f": {colour}" in head
        assert dark_colours()[colour] in head
    assert text == svg(drawing.figure).decode()
