"""Tables, the figure and the record of the evidence, from the verdicts of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.evidence.frontier import REPLICATES, Estimate, Point, Verdicts, compare
from benchmarks.evidence.grid import Grid, Setting
from iaat_fast.report.figures.drawing import (
    BLUE,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    blank,
    files,
    legend_above,
)
from iaat_fast.storage import replace, write_json

SCHEMA = 1
Points = tuple[dict[float, Point], dict[str, Point]]
MARKERS = "sD^vPX*<>h"


def analyse(grid: Grid, verdicts: Mapping[str, Mapping[str, Verdicts]]) -> dict[str, Points]:
    """For each attack and its number of seeds, the points of fixed radii and of the others (see `frontier.compare`)."""
    found = {}
    for attack, by_setting in verdicts.items():
        seeds = len(next(iter(by_setting.values())).natural)
        measured = [s for s in grid.settings if s.name in by_setting]
        fixed = {s.eps: by_setting[s.name] for s in measured if s.eps is not None}
        others = {s.name: by_setting[s.name] for s in measured if s.eps is None}
        if fixed:
            name = f"{attack}, {seeds} seed{'s' * (seeds > 1)}"
            found[name] = compare(fixed, others)
    return found


def write(
    grid: Grid, analysis: Mapping[str, Points], out: Path, facts: Mapping[str, Any]
) -> list[Path]:
    """Write evidence.md, evidence.json and figure-3.svg to `out`; returns their paths.

    Args:
        facts: of the runs, for the record: title, commands, commits, machine, seeds and images.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("evidence.md", "evidence.json", "figure-3.svg")]
    found = record(grid, analysis, facts)
    replace(paths[0], "\n".join([*_head(found), *tables(grid, found)]).encode() + b"\n")
    write_json(paths[1], found)
    replace(paths[2], _figure(grid, analysis))
    return paths


def tables(grid: Grid, evidence: Mapping[str, Any]) -> list[str]:
    """The lines of the tables of a `record`, and in a sentence per attack what it says of the claim."""
    labels = {setting.name: setting.label for setting in grid.settings}
    lines = []
    for attack, found in groupby(evidence["rows"], key=itemgetter("attack")):
        rows = list(found)
        lines += [
            "",
            f"## {attack}",
            "",
            "| setting (radii in 1/255) | natural (%) | robust (%) | beyond the curve | interval, 95 % | all at once |",
            "|---|---:|---:|---:|---:|---:|",
            *(f"| {labels[row['setting']]} | {' | '.join(_cells(row))} |" for row in rows),
            "",
            _verdict(labels, rows),
        ]
    return lines


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "natural" not in row:
        return ["not measured", *[""] * 4]
    accuracies = [_with_interval(row[name]) for name in ("natural", "robust")]
    if "beyond" not in row:
        return [*accuracies, *[""] * 3]
    beyond = row["beyond"]
    intervals = [
        f"{low:+.2f} … {high:+.2f}"
        for low, high in (beyond["interval_95"], row["beyond_all_at_once"])
    ]
    return [*accuracies, f"{beyond['value']:+.2f}", *intervals]


def _with_interval(accuracy: Mapping[str, Any]) -> str:
    low, high = accuracy["interval_95"]
    return f"{accuracy['value']:.1f} ({low:.1f} – {high:.1f})"


def _verdict(labels: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Which settings of an attack lie beyond the curve and which inside it, all comparisons taken together."""
    found: dict[str, list[str]] = {"Beyond": [], "Inside": [], "Undecided": []}
    for row in rows:
        if "beyond" in row:
            low, high = row["beyond_all_at_once"]
            side = "Beyond" if low > 0 else "Inside" if high < 0 else "Undecided"
            found[side].append(labels[row["setting"]])
    return " ".join(f"{side}: {'; '.join(named) or 'none'}." for side, named in found.items())


def _head(evidence: Mapping[str, Any]) -> list[str]:
    tests = sum("beyond" in row for row in evidence["rows"])
    return [
        f"# {evidence['title']}",
        "",
        *(f"    {line}" for line in evidence["commands"]),
        "",
        f"{evidence['measured']} {evidence['seeds']}, {evidence['images']:,} test images.",
        "",
        "Accuracies are means over the seeds with 95 % bootstrap intervals, over images and seeds "
        f"({evidence['replicates']:,} replicates). *Beyond the curve* is how many points of natural and robust "
        "accuracy a setting could lose, of both at once, and still reach the line through the fixed radii (the "
        "additive epsilon indicator); it is negative inside. *All at once*: intervals that hold together in "
        f"95 % for all {tests} comparisons of this page (Bonferroni). The noise of the fixed radii lifts "
        "their line, so that the distance is too small rather than too large.",
    ]


def _point(
    setting: Setting, fixed: Mapping[float, Point], others: Mapping[str, Point]
) -> Point | None:
    return others.get(setting.name) if setting.eps is None else fixed.get(setting.eps)


def record(grid: Grid, analysis: Mapping[str, Points], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured, as evidence.json keeps it and `tables` shows it; radii are shares of the pixels' range."""
    tests = sum(len(others) for _, others in analysis.values())
    rows = []
    for attack, (fixed, others) in analysis.items():
        for setting in grid.settings:
            point = _point(setting, fixed, others)
            row: dict[str, Any] = {"attack": attack, "setting": setting.name, "eps": setting.eps}
            if point is not None:
                row |= {"natural": _plain(point.natural, 1), "robust": _plain(point.robust, 1)}
                if point.beyond is not None:
                    row["beyond"] = _plain(point.beyond, 1)
                    row["beyond_all_at_once"] = list(point.beyond.interval(tests))
            rows.append(row)
    return {"schema": SCHEMA, **facts, "replicates": REPLICATES, "rows": rows}


def _plain(estimate: Estimate, tests: int) -> dict[str, Any]:
    return {"value": estimate.value, "interval_95": list(estimate.interval(tests))}


def _figure(grid: Grid, analysis: Mapping[str, Points]) -> bytes:
    """Figure 3 with intervals: a panel per attack, the fixed radii joined by a line, the others as points."""
    figure, first = blank(size=(5.6 * len(analysis), 4.6))
    first.remove()
    panels = figure.subplots(1, len(analysis), squeeze=False)[0]
    for axes, (attack, (fixed, others)) in zip(panels, analysis.items(), strict=True):
        axes.set_title(attack, loc="left", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        _draw(axes, fixed.values(), label="fixed ε", color=BLUE, marker="o", linestyle="-")
        for eps, point in fixed.items():
            at = (point.natural.value, point.robust.value)
            axes.annotate(
                f"{eps * 255:g}", at, (5, 4), textcoords="offset points", fontsize=8, color=QUIET
            )
        settings = [s for s in grid.settings if s.name in others]
        for number, setting in enumerate(settings):
            _draw(
                axes,
                [others[setting.name]],
                label=setting.label,
                color=PURPLE if "no-warmup" in setting.name else ORANGE,
                marker=MARKERS[number % len(MARKERS)],
                linestyle="none",
            )
        axes.set(xlabel="natural accuracy (%)", ylabel="robust accuracy (%)")
    legend_above(figure, panels[0])
    return files(figure)["svg"]


def _draw(axes: Any, points: Any, **style: Any) -> None:
    found = list(points)
    bars = []
    for pick in ("natural", "robust"):
        estimates = [getattr(point, pick) for point in found]
        lows, highs = zip(*(e.interval() for e in estimates), strict=True)
        values = [e.value for e in estimates]
        below = [max(v - low, 0.0) for v, low in zip(values, lows, strict=True)]
        above = [max(high - v, 0.0) for v, high in zip(values, highs, strict=True)]
        bars.append((values, [below, above]))
    (x, x_bars), (y, y_bars) = bars
    axes.errorbar(x, y, xerr=x_bars, yerr=y_bars, elinewidth=0.7, ms=6, **style)
