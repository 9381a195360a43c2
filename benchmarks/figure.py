"""`python -m benchmarks figure RECORD ... --out FILE.svg`: PGD of committed records as bars, a panel per model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.record import quantity

OURS, PEER = "#0072B2", "#999999"
NAMES = {
    "plain-loop": "plain PyTorch loop",
    "plain-loop-bf16": "plain loop, bf16 autocast",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "ART",
    "exact": "iaat_fast, exact (same bits)",
    "fast": "iaat_fast, fast",
    "bf16": "iaat_fast, bf16 gradients",
}
"""The providers that are drawn, from above, as the record and as the figure call them."""


class Bar(NamedTuple):
    """A provider's time of a whole attack, in seconds, over n rounds."""

    provider: str
    p20: float
    p50: float
    p80: float
    n: int


class Panel(NamedTuple):
    """A model and its batch on a machine, with a bar per provider."""

    title: str
    bars: list[Bar]


def main(argv: Sequence[str]) -> int:
    """Draw; returns the exit status.

    Raises:
        ValueError: a file that is no record of `python -m benchmarks attacks`.
    """
    options = parse(argv)
    drawn = [panel for path in options.records for panel in panels(path)]
    draw(drawn, options.out)
    print(options.out)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The records, and the file to write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks figure", description=__doc__)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD", help="of attacks, JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    return parser.parse_args(argv)


def panels(path: Path) -> Iterator[Panel]:
    """The panels of one record, whose machine and commit their titles name."""
    record = json.loads(path.read_text())
    machine = record.get("machine", {})
    where = machine.get("gpu") or f"{machine.get('cpu', '')}, {machine.get('threads')} threads"
    where = (
        f"{where.replace('(R)', '')}, torch {machine.get('torch')}, commit {machine.get('commit')}"
    )
    found: dict[str, list[Bar]] = {}
    for case, bar in (*_earlier(record), *_rows(record)):
        found.setdefault(case, []).append(bar)
    if not found:
        raise ValueError(f"{path}: expected a record of `python -m benchmarks attacks`")
    for case, bars in found.items():
        bars.sort(key=lambda bar: list(NAMES).index(bar.provider))
        yield Panel(f"{case}\n{where}", bars)


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, Bar]]:
    for row in record.get("rows", []):
        if row["metric"] == "time" and row["provider"] in NAMES and row["p50"] is not None:
            times = (row[name] for name in ("p20", "p50", "p80", "n"))
            yield row["case"], Bar(row["provider"], *times)


def _earlier(record: Mapping[str, Any]) -> Iterator[tuple[str, Bar]]:
    """Of a record in its earlier form, a list of cases with their providers."""
    for case in record.get("cases", []):
        name = f"{case['model']}, batch {case['shape'][0]}, PGD-{case['steps']}"
        for row in case["records"]:
            if row["name"] in NAMES and row["status"] == "ok":
                times = (row[key] for key in ("p20_s", "p50_s", "p80_s", "n"))
                yield name, Bar(row["name"], *times)


def draw(drawn: Sequence[Panel], path: Path) -> None:
    """One panel below the other: medians as bars with their number, whiskers from p20 to p80."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    heights = [len(panel.bars) + 1.5 for panel in drawn]
    figure = Figure(figsize=(8, 0.29 * sum(heights)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for (title, bars), axis in zip(drawn, axes, strict=True):
        places = range(len(bars))
        middle = [bar.p50 for bar in bars]
        spread = [[bar.p50 - bar.p20 for bar in bars], [bar.p80 - bar.p50 for bar in bars]]
        colours = [OURS if NAMES[bar.provider].startswith("iaat") else PEER for bar in bars]
        axis.barh(places, middle, xerr=spread, color=colours, error_kw={"elinewidth": 0.8})
        for place, bar in zip(places, bars, strict=True):
            text = f" {quantity(bar.p50, 's')}"
            axis.text(bar.p80, place, text, va="center", fontsize="small")
        axis.set_yticks(places, [NAMES[bar.provider] for bar in bars], fontsize="small")
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max(bar.p80 for bar in bars))
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        rounds = sorted({bar.n for bar in bars})
        axis.set_title(
            f"{title}; medians of {'/'.join(map(str, rounds))} rounds, p20 to p80",
            fontsize="small",
            loc="left",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same record gives the same file: no date, fixed names of elements, text as text.
    with matplotlib.rc_context({"svg.hashsalt": "iaat_fast", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
