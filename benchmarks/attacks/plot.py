"""The figure of a network: who attacks how many images per second, and what each lever adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.attacks.measure import Case, Record
from benchmarks.attacks.tables import title

# Okabe and Ito's colours, told apart with any colour vision; hatching tells kinds apart in print.
COLOURS = {"fp32": "#0072B2", "tf32": "#009E73", "bf16": "#E69F00", "fp16": "#CC79A7"}
SLOWER = "#D55E00"
HATCHES = {"peer": "////", "expert": "xxxx", "engine": ""}


def draw(cases: Sequence[Case], machine: Mapping[str, Any], path: Path) -> None:
    """Two panels per case, written to path in the format of its suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [max(0.27 * len(_timed(case)), 2.4) + 1.1 for case in cases]
    figure = Figure(figsize=(12.5, sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(cases), 2, squeeze=False, height_ratios=heights, width_ratios=(1.25, 1)
    )
    for case, (speeds, levers) in zip(cases, grid, strict=True):
        _speeds(speeds, case)
        _levers(levers, case)
    shown = [record for case in cases for record in _timed(case)]
    handles = [
        Patch(facecolor=colour, label=precision)
        for precision, colour in COLOURS.items()
        if any(record.precision == precision for record in shown)
    ]
    handles += [
        Patch(facecolor="white", edgecolor="black", hatch=HATCHES["peer"], label="peer"),
        Patch(facecolor="white", edgecolor="black", hatch=HATCHES["expert"], label="expert"),
        Patch(facecolor="white", edgecolor="black", label="iaat_fast"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(
        f"{machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"commit {machine['commit']}; medians, whiskers p20 to p80",
        fontsize="medium",
    )
    figure.savefig(path, dpi=130)


def _timed(case: Case) -> list[Record]:
    return [record for record in case.records if record.p50_s is not None]


def _speeds(axis: Any, case: Case) -> None:
    records = _timed(case)
    n = case.shape[0]
    for place, record in enumerate(records):
        assert record.p20_s is not None
        assert record.p50_s is not None
        assert record.p80_s is not None
        speed = n / record.p50_s
        axis.barh(
            place,
            speed,
            xerr=[[speed - n / record.p80_s], [n / record.p20_s - speed]],
            color=COLOURS[record.precision],
            hatch=HATCHES[record.kind],
            edgecolor="white" if record.kind != "engine" else COLOURS[record.precision],
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        if record.over_best_peer is not None:
            axis.annotate(
                f"{record.over_best_peer:.2f}×",
                (n / record.p20_s, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )
    best = next((r for r in records if r.name == case.best_peer), None)
    if best is not None:
        axis.axvline(n / best.p50_s, color="black", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(records)), [record.name for record in records], fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(0, 1.14 * max((n / (r.p20_s or 1) for r in records), default=1))
    axis.set_xlabel("images per second (× the best peer in fp32, dashed)")
    axis.set_title(title(case), loc="left", fontsize="medium")
    _grid(axis)


def _levers(axis: Any, case: Case) -> None:
    """Bars from each rung's speed to the next, back in another colour where a lever slows down."""
    axis.set_title("what each lever adds", loc="left", fontsize="medium")
    if not case.ladder:
        axis.set_axis_off()
        return
    precision = {record.name: record.precision for record in case.records}
    before = 0.0
    for place, rung in enumerate(case.ladder):
        colour = COLOURS[precision[rung.name]] if place else "#999999"
        axis.barh(
            place,
            rung.over_first - before,
            left=before,
            color=SLOWER if rung.over_previous < 1 else colour,
        )
        axis.annotate(
            f"×{rung.over_previous:.2f}" if place else "1",
            (max(rung.over_first, before), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
        before = rung.over_first
    names = [case.ladder[0].name, *[f"+ {rung.adds}" for rung in case.ladder[1:]]]
    axis.set_yticks(range(len(names)), names, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(0, 1.16 * max(rung.over_first for rung in case.ladder))
    axis.set_xlabel(f"speed, {case.ladder[0].name} = 1 (vermilion: slower)")
    _grid(axis)


def _grid(axis: Any) -> None:
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
