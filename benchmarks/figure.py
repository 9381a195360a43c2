"""The figure of a record: percentiles of every provider at every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Row

# Okabe and Ito's colours, told apart with any colour vision, and a marker each for print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999")
MARKERS = "osv^DPXd<>*ph"
PER_PANEL = 8


def draw(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> None:
    """Panels of a few cases of one metric each, on a logarithmic scale; nothing where nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.p20 is not None]
    panels = [
        (metric, cases[first : first + PER_PANEL])
        for metric in dict.fromkeys(row.metric for row in timed)
        for cases in [list(dict.fromkeys(row.case for row in timed if row.metric == metric))]
        for first in range(0, len(cases), PER_PANEL)
    ]
    if not panels:
        return
    providers = list(dict.fromkeys(row.provider for row in timed))
    style = {
        name: (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, name in enumerate(providers)
    }
    figure = Figure(figsize=(12, 3.6 * len(panels) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    shown: dict[str, Any] = {}
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for (metric, cases), axis in zip(panels, grid, strict=True):
        some = [row for row in timed if row.metric == metric and row.case in cases]
        names = list(dict.fromkeys(row.provider for row in some))
        for row in some:
            assert row.p20 is not None
            assert row.p50 is not None
            assert row.p80 is not None
            offset = 0.7 * ((names.index(row.provider) + 0.5) / len(names) - 0.5)
            colour, marker = style[row.provider]
            shown[row.provider] = axis.errorbar(
                cases.index(row.case) + offset,
                row.p50,
                yerr=[[row.p50 - row.p20], [row.p80 - row.p50]],
                linestyle="none",
                marker=marker,
                color=colour,
                elinewidth=1,
            )
        axis.set_xticks(range(len(cases)), [_wrapped(case) for case in cases], fontsize="small")
        axis.set_xlim(-0.5, len(cases) - 0.5)
        axis.set_ylabel(f"{metric} [{some[0].unit or '1'}]")
        if all((row.p20 or 0) > 0 for row in some):
            axis.set_yscale("log")
        axis.grid(axis="y", which="both", alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5)
    figure.suptitle(
        f"{machine.get('gpu') or machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}; "
        "medians, whiskers p20 to p80"
    )
    figure.savefig(path, dpi=130)


def _wrapped(case: str) -> str:
    return case.replace(", ", "\n").replace(" ", "\n", 1)
