"""The table of plans, and in words what limits each and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from iaat_fast.plan.estimate import COMMUNICATION, Figure, Plan
from iaat_fast.plan.rates import ARITHMETIC, LAUNCHES, MEASURED, TRAFFIC

# Below so many images per GPU, BatchNorm's statistics are those of few images.
_FEW = 8
_REMEDIES = {
    ARITHMETIC: "attack in half precision (--precision), select lazily and with fewer steps, or take more GPUs",
    TRAFFIC: "attack in half precision with BatchNorm folded (--precision fp16), update in it (--amp), or compile",
    LAUNCHES: "larger batches per GPU (--batch-per-gpu), captured steps, or fewer GPUs",
    COMMUNICATION: "larger batches per GPU (--batch-per-gpu), a faster network between nodes, or fewer GPUs",
    MEASURED: "the passes were timed whole; without --measure the model says what they are spent on",
}


def table(plans: Sequence[Plan], title: str) -> Table:
    """A column for each plan, a row for each figure, and where it comes from."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for plan in plans:
        shown.add_column(f"{plan.gpus} GPU{'s' if plan.gpus > 1 else ''}", justify="right")
    shown.add_column("unit")
    shown.add_column("source")
    columns = [{_key(figure): figure for figure in plan.figures()} for plan in plans]
    for key in dict.fromkeys(key for column in columns for key in column):
        found = [column.get(key) for column in columns]
        known = next(figure for figure in found if figure is not None)
        values = [f"{figure.value:.4g}" if figure else "0" for figure in found]
        shown.add_row(known.name, *values, known.unit, known.source)
    return shown


def remarks(plans: Iterable[Plan]) -> list[str]:
    """What limits each plan, and what one would do about it."""
    lines = []
    for plan in plans:
        what, share = next(iter(plan.spent.items()))
        lines.append(
            f"{plan.gpus} GPUs: limited by {what} ({share:.0%} of the time, modelled): {_REMEDIES[what]}"
        )
        if not plan.fits:
            held = sum(plan.held.values()) / 1e9
            lines.append(
                f"{plan.gpus} GPUs: needs at least {held:.1f} GB (modelled) of {plan.capacity / 1e9:.0f} GB (given): "
                "smaller batches per GPU, --amp, or --strategy lazy"
            )
        batch = plan.batch_size // plan.gpus
        if batch < _FEW:
            lines.append(
                f"{plan.gpus} GPUs: {batch} images per GPU (given) are few for BatchNorm's statistics: fewer GPUs, or "
                "a larger batch with its learning rate"
            )
    return lines


def _key(figure: Figure) -> tuple[str, str]:
    return figure.name, figure.unit
