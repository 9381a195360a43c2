"""Figures 2 to 9 of the paper, drawn from runs; one file per kind."""

from __future__ import annotations

from collections.abc import Sequence

from iaat_fast.report.figures.curves import draw_eps_sweep, draw_steps_sweep, draw_tradeoff
from iaat_fast.report.figures.drawing import Drawing
from iaat_fast.report.figures.galleries import TrainingImages, draw_galleries
from iaat_fast.report.figures.perturbed import draw_perturbed
from iaat_fast.report.figures.radii import draw_histograms, draw_progress, undrawn
from iaat_fast.report.groups import Group

__all__ = ["Drawing", "TrainingImages", "draw_figures"]


def draw_figures(groups: Sequence[Group], images: TrainingImages) -> list[Drawing]:
    """Every figure that can be drawn from the runs, in the paper's order.

    Args:
        groups: the runs.
        images: loads the training images of a run, and collects what could not be drawn, and why.
    """
    images.missing += [text for group in groups for text in undrawn(group)]
    drawings = [
        drawing
        for group in groups
        for draw in (
            draw_tradeoff,
            draw_eps_sweep,
            draw_progress,
            draw_histograms,
            draw_steps_sweep,
        )
        for drawing in draw(group)
    ]
    drawings += [
        drawing
        for group in groups
        for draw in (draw_galleries, draw_perturbed)
        for drawing in draw(group, images)
    ]
    return sorted(drawings, key=lambda drawing: drawing.number)
