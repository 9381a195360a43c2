"""The figure: share of a copy's bandwidth for each op, size and backend, and the time of a call on logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.kernels.measure import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision, and a marker each for print.
STYLE = {
    "native": ("#0072B2", "o"),
    "triton": ("#E69F00", "s"),
    "reference": ("#999999", "^"),
    "eager": ("#D55E00", "v"),
    "compile": ("#009E73", "D"),
}
ON_LOGITS = ("ce_cotangent", "select_epsilon_")
DTYPES = ("float32", "bfloat16", "float16", "uint8")


def draw(records: list[Record], machine: dict[str, object], path: Path) -> None:
    """A panel per op and dtype, written to path in the format of its suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [r for r in records if r.status == "ok" and r.counted]
    ops = list(dict.fromkeys(r.op for r in shown))
    dtypes = [d for d in DTYPES if any(r.dtype == d for r in shown)]
    panels = [
        (op, dtype)
        for op in ops
        for dtype in dtypes
        if any((r.op, r.dtype) == (op, dtype) for r in shown)
    ]
    # A column per floating-point dtype, so that an op's panels lie beside each other.
    columns = max(1, min(len(panels), sum(d != "uint8" for d in dtypes)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(5.2 * columns, 3.4 * lines + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    best = max((100 * (r.share_of_copy or 0) for r in shown if r.op not in ON_LOGITS), default=0.0)
    for (op, dtype), axis in zip(panels, axes, strict=False):
        _panel(axis, op, dtype, [r for r in shown if (r.op, r.dtype) == (op, dtype)])
        if op not in ON_LOGITS:
            axis.set_ylim(0, max(best, 100) * 1.08)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = {}
    for axis in figure.axes:
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles)
        )
    figure.suptitle(
        f"{machine.get('gpu') or machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}; "
        "median, whiskers p20 to p80"
    )
    figure.savefig(path, dpi=130)


def _panel(axis: Axes, op: str, dtype: str, records: list[Record]) -> None:
    from matplotlib.ticker import LogLocator

    sizes = list(dict.fromkeys(r.problem for r in records))
    names = [name for name in STYLE if any(r.backend == name for r in records)]
    for number, name in enumerate(names):
        colour, marker = STYLE[name]
        offset = 0.14 * (number - (len(names) - 1) / 2)
        mine = [r for r in records if r.backend == name]
        values = [_values(r, op) for r in mine]
        middle = [v[1] for v in values]
        below = [max(m - v[0], 0.0) for m, v in zip(middle, values, strict=True)]
        above = [max(v[2] - m, 0.0) for m, v in zip(middle, values, strict=True)]
        axis.errorbar(
            [sizes.index(r.problem) + offset for r in mine],
            middle,
            yerr=(below, above),
            linestyle="none",
            marker=marker,
            color=colour,
            elinewidth=1,
            label=name,
        )
    axis.set_title(f"{op}, {dtype}", loc="left", fontsize="medium")
    axis.set_xticks(range(len(sizes)), [s.replace(" ", "\n") for s in sizes], fontsize="small")
    axis.set_xlim(-0.6, len(sizes) - 0.4)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_xlabel("logits [rows x classes]" if op in ON_LOGITS else "size")
    if op in ON_LOGITS:
        in_graph = any(r.graph_us is not None for r in records)
        axis.set_ylabel(f"time of a call{' in a CUDA graph' if in_graph else ''} [µs]")
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    else:
        axis.set_ylabel("share of a copy's bytes/s [%]")
        axis.axhline(100, color="black", linewidth=1, linestyle="--")


def _values(record: Record, op: str) -> tuple[float, float, float]:
    """p20, p50, p80 of what the panel shows."""
    low, middle, high = record.p20_us, record.p50_us, record.p80_us
    assert low is not None
    assert middle is not None
    assert high is not None
    if op in ON_LOGITS:
        return (low, middle, high) if record.graph_us is None else (record.graph_us,) * 3
    share = 100 * (record.share_of_copy or 0.0)
    return share * middle / high, share, share * middle / low
