"""Tables, the figure and the record of the evidence, from the verdicts of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    replace(paths[0], markdown(grid, analysis, facts).encode())
    write_json(paths[1], _record(grid, analysis, facts))
    replace(paths[2], _figure(grid, analysis))
    return paths


def markdown(grid: Grid, analysis: Mapping[str, Points], facts: Mapping[str, Any]) -> str:
    """The tables, and in a sentence per attack what they say of the claim."""
    tests = sum(len(others) for _, others in analysis.values())
    blocks = [_head(facts, tests)]
    for attack, (fixed, others) in analysis.items():
        lines = [
            f"## {attack}",
            "",
            "| setting (radii in 1/255) | natural (%) | robust (%) | beyond the curve | interval, 95 % | all at once |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for setting in grid.settings:
            point = _point(setting, fixed, others)
            if point is None:
                lines.append(f"| {setting.label} | not measured | | | | |")
                continue
            distance = ("", "", "")
            if point.beyond is not None:
                distance = (
                    f"{point.beyond.value:+.2f}",
                    _between(point.beyond, 1),
                    _between(point.beyond, tests),
                )
            cells = (setting.label, _with_interval(point.natural), _with_interval(point.robust))
            lines.append("| " + " | ".join((*cells, *distance)) + " |")
        blocks.append("\n".join([*lines, "", _verdict(grid, others, tests)]))
    return "\n\n".join(blocks) + "\n"


def _head(facts: Mapping[str, Any], tests: int) -> str:
    return "\n".join(
        [
            f"# {facts['title']}",
            "",
            *(f"    {line}" for line in facts["commands"]),
            "",
            f"{facts['measured']} {facts['seeds']}, {facts['images']:,} test images.",
            "",
            "Accuracies are means over the seeds with 95 % bootstrap intervals, over images and seeds "
            f"({REPLICATES:,} replicates). *Beyond the curve* is how many points of natural and robust accuracy "
            "a setting could lose, of both at once, and still reach the line through the fixed radii (the "
            "additive epsilon indicator); it is negative inside. *All at once*: intervals that hold together in "
            f"95 % for all {tests} comparisons of this page (Bonferroni). The noise of the fixed radii lifts "
            "their line, so that the distance is too small rather than too large.",
        ]
    )


def _verdict(grid: Grid, others: Mapping[str, Point], tests: int) -> str:
    labels = {setting.name: setting.label for setting in grid.settings}

    def named(found: Sequence[str]) -> str:
        return "; ".join(labels[name] for name in found) or "none"

    measured = {name: p.beyond for name, p in others.items() if p.beyond is not None}
    outside = [name for name, e in measured.items() if e.interval(tests)[0] > 0]
    inside = [name for name, e in measured.items() if e.interval(tests)[1] < 0]
    undecided = [name for name in measured if name not in (*outside, *inside)]
    return f"Beyond: {named(outside)}. Inside: {named(inside)}. Undecided: {named(undecided)}."


def _point(
    setting: Setting, fixed: Mapping[float, Point], others: Mapping[str, Point]
) -> Point | None:
    return others.get(setting.name) if setting.eps is None else fixed.get(setting.eps)


def _with_interval(estimate: Estimate) -> str:
    low, high = estimate.interval()
    return f"{estimate.value:.1f} ({low:.1f} – {high:.1f})"


def _between(estimate: Estimate, tests: int) -> str:
    low, high = estimate.interval(tests)
    return f"{low:+.2f} … {high:+.2f}"


def _record(grid: Grid, analysis: Mapping[str, Points], facts: Mapping[str, Any]) -> dict[str, Any]:
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
