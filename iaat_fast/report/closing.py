"""The small table that a training run ends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iaat_fast.evaluate.results import attack_name

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a finished run came to.

    Args:
        natural: natural test accuracy, in [0, 1].
        robust: test accuracy under `attack`, in [0, 1].
        attack: "eps" and "alpha" on the [0, 1] scale, "steps", "restarts" and "targeted" of the PGD attack.
        eps_mean, eps_std, eps_min, eps_max: of the radii of all training samples, [0, 1] scale;
            None for a method whose samples have no radii of their own.
        fast: what `run.fast` has chosen, in words; None where it was off.
    """

    natural: float
    robust: float
    attack: dict[str, Any]
    eps_mean: float | None = None
    eps_std: float | None = None
    eps_min: float | None = None
    eps_max: float | None = None
    fast: str | None = None


def closing_table(summary: RunSummary, *, title: str | None = None) -> Table:
    """The summary for a terminal; accuracies in percent, radii in units of 1/255."""
    from rich.table import Table

    caption = None if summary.fast is None else f"fast: {summary.fast}"
    table = Table(title=title, caption=caption, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("natural accuracy", f"{summary.natural:.2%}")
    table.add_row(attack_name(summary.attack), f"{summary.robust:.2%}")
    if summary.eps_mean is None:
        return table
    mean, std, low, high = (
        (value or 0.0) * 255
        for value in (summary.eps_mean, summary.eps_std, summary.eps_min, summary.eps_max)
    )
    table.add_row("ε memory, mean ± spread (1/255)", f"{mean:.2f} ± {std:.2f}")
    table.add_row("ε memory, smallest – largest (1/255)", f"{low:.2f} – {high:.2f}")
    return table
