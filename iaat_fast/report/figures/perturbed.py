"""Figure 7: samples with small radii, attacked at their own radius and at larger ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from iaat_fast import models, units
from iaat_fast.attacks import PGD
from iaat_fast.data import ImageData, fetch
from iaat_fast.report import naming
from iaat_fast.report.figures.drawing import INK, WRONG, Drawing
from iaat_fast.report.figures.galleries import GAP, LINE, TrainingImages, grid, to_picture
from iaat_fast.report.figures.radii import adaptive, load_radii
from iaat_fast.report.groups import Group
from iaat_fast.report.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
"""Samples, one per column."""

CANDIDATES, BATCH = 256, 64
"""Samples with the smallest radii, among which correctly classified ones are searched, in batches."""

STEPS = 20
"""Steps of the attack, of a quarter of the smaller radius each: enough to cross the larger ball."""


def draw_perturbed(group: Group, images: TrainingImages) -> list[Drawing]:
    """Figure 7, whose attacks run here, on the run's checkpoint."""
    if (chosen := adaptive(group)) is None:
        return []
    variant, run = chosen
    what = f"Figure 7 of {group.name}"
    epoch, path = list(run.snapshots.items())[-1]
    radii = load_radii(path)
    data = images.of(run, len(radii), what)
    if data is None:
        return []
    try:
        model = _model(run, data)
        numbers = _small_and_correct(model, data, radii)
        if not len(numbers):
            raise ValueError(f"{run.name} classifies none of the {CANDIDATES} smallest correctly")
        figure, fooled, wide = _figure(model, run, data, numbers, radii)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        images.lack(what, " ".join(str(error).split()))
        return []
    return [
        Drawing(
            number=7,
            stem=f"figure-7-{group.stem}",
            title="Samples with small ε, attacked at their own and at larger radii",
            caption=(
                f"{group.name}, {variant.name}, seed {run.seed}, after {epoch} epochs. The correctly"
                f" classified training samples with the smallest radii; PGD-{STEPS} on the run's own"
                " model. A column is a sample, below its class and its own radius; below each image is what the"
                " model sees in it, marked ✗ where that is not its class."
            ),
            alt=(
                f"Grid of {len(numbers)} training images, as they are and attacked. Fooled at their own"
                f" radius: {fooled[0]}; at {wide[0]}/255: {fooled[1]}; at {wide[1]}/255: {fooled[2]}."
            ),
            figure=figure,
        )
    ]


def _model(run: RunRecord, data: ImageData) -> nn.Module:
    """The trained network of a run, with the averaged weights if the run kept them."""
    checkpoint = run.folder.checkpoint()
    name = run.config["model.name"]
    if name not in models.NAMES:
        raise ValueError(f"the model of {run.name} came from Python")
    model = models.build_for(
        data.name,
        name,
        num_classes=data.num_classes,
        in_channels=data.train.channels,
        width=run.config.get("model.width"),
        depth=run.config.get("model.depth"),
    )
    model.load_state_dict(checkpoint.get("ema") or checkpoint["model"])
    return model.eval()


def _small_and_correct(model: nn.Module, data: ImageData, radii: np.ndarray) -> np.ndarray:
    order = np.argsort(radii, kind="stable")[:CANDIDATES]
    found: list[int] = []
    for numbers in torch.from_numpy(order.copy()).split(BATCH):
        x, y = fetch(data.train, numbers)
        found += numbers[_predict(model, x) == y].tolist()
        if len(found) >= SHOWN:
            break
    return np.array(found[:SHOWN], dtype=np.int64)


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def _figure(
    model: nn.Module, run: RunRecord, data: ImageData, numbers: np.ndarray, radii: np.ndarray
) -> tuple[Figure, list[int], list[str]]:
    """The figure, the number of fooled samples at each radius, and the larger radii in units of 1/255, as text."""
    from matplotlib.figure import Figure

    x, y = fetch(data.train, torch.from_numpy(numbers))
    base = float(run.config.get("evaluation.eps", 8 / 255))
    own = torch.from_numpy(radii[numbers] / 255).float()
    rows = [("natural", torch.zeros_like(own)), ("own ε", own)]
    larger = (base, min(2 * base, 1.0))
    wide = [units.to_text(radius) for radius in larger]
    rows += [
        (f"ε = {text}", torch.full_like(own, radius))
        for text, radius in zip(wide, larger, strict=True)
    ]
    attack = PGD(model, alpha=base / 4, steps=STEPS, seed=0)
    images: list[np.ndarray] = []
    labels: list[str] = []
    colours: list[str] = []
    fooled = []
    for title, eps in rows:
        shown = attack(x, y, eps=eps) if title != "natural" else x
        seen = _predict(model, shown)
        right = (seen == y).tolist()
        if title != "natural":
            fooled.append(right.count(False))
        images += list(to_picture(shown))
        for label, correct in zip(seen.tolist(), right, strict=True):
            name = naming.class_name(data.name, label)
            labels.append(name if correct else f"✗ {name}")
            colours.append(INK if correct else WRONG)
    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    # One grid, so that the images of a sample are in line below its heading.
    axes = figure.subplots()
    grid(axes, images, labels, columns=len(numbers), colours=colours)
    for column, (label, radius) in enumerate(zip(y.tolist(), (255 * own).tolist(), strict=True)):
        head = f"{naming.class_name(data.name, label)}\nε = {radius:.1f}"
        axes.text(
            column * (1 + GAP) + 0.5,
            0.06,
            head,
            ha="center",
            va="bottom",
            fontsize=8,
            color=INK,
            linespacing=1.1,
        )
    for row, (title, _) in enumerate(rows):
        middle = -row * (1 + GAP + LINE) - 0.5
        axes.text(-0.12, middle, title, ha="right", va="center", fontsize=9, color=INK)
    axes.set_xlim(-1.0, SHOWN * (1 + GAP) - GAP)
    axes.set_ylim(top=0.6)
    return figure, fooled, wide
