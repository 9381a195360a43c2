"""`Drawing`, a figure with its texts; the style of figures on light and dark pages; and their files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iaat_fast.methods import ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "yellow": "#e69f00",
    "sky": "#56b4e9",
}
"""Okabe and Ito's colours, which colour-blind readers tell apart."""

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = PALETTE.values()

INK, QUIET, GRID = "#1b1f24", "#5c6570", "#d3d8de"
"""Colours of text, of secondary text and axes, and of grid lines."""

WRONG = "#b04a00"
"""Colour of text that names a wrong class: orange, dark enough to be read."""

DARK = {INK: "#e8ebee", QUIET: "#a3adb8", GRID: "#3a424b", BLUE: "#3f9bdc", WRONG: "#ff9d5c"}
"""The colours that change on a dark page, and to what; the others are legible on both."""

METHOD_COLOURS = {row.name: PALETTE[row.colour] for row in ROWS.values() if row.colour}
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")

SNAPSHOTS = 4
"""Most histograms in one figure, as in the paper's Figure 8; more lines would hide each other."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of the paper, drawn from runs.

    Args:
        number: in the paper.
        stem: of its files, `figure-3-cifar10-resnet18`.
        title: what it shows.
        caption: the runs, how they were measured, and how what is shown was chosen.
        alt: text for readers who cannot see it.
        figure: matplotlib's.
    """

    number: int
    stem: str
    title: str
    caption: str
    alt: str
    figure: Figure


def blank(
    title: str | None = None, *, size: tuple[float, float] = (5.6, 3.7)
) -> tuple[Figure, Axes]:
    """An empty figure with its axes; made without pyplot, which needs global state and a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    if title is not None:
        axes.set_title(title, loc="left", color=INK)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(color=QUIET, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def legend(axes: Axes, **options: Any) -> None:
    """The legend inside the axes, without a frame."""
    axes.legend(frameon=False, labelcolor=INK, **options)


def legend_above(figure: Figure, axes: Axes) -> None:
    """The legend above the axes, so that it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) == 4 else min(3, len(labels))
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=8.5,
        columnspacing=1.4,
    )


def line(axes: Axes, x: Sequence[float], y: Any, **style: Any) -> None:
    """Draw a line over integers, such as epochs."""
    from matplotlib.ticker import MaxNLocator

    # A run of one epoch has a point and no line.
    axes.plot(x, y, lw=1.8, marker="o" if len(x) == 1 else None, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def not_below_zero(axes: Axes) -> None:
    """Cut the axes' margins below 0, since there are no epochs, radii or accuracies."""
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))


def series(keys: Sequence[str]) -> list[dict[str, Any]]:
    """Colour, marker and line style of the curves of these methods; no two share both marker and line style."""
    others = [c for c in (SKY, YELLOW, GREEN, PURPLE) if c not in map(METHOD_COLOURS.get, keys)]
    unnamed = [key for key in dict.fromkeys(keys) if key not in METHOD_COLOURS]
    colours = METHOD_COLOURS | {
        key: others[i % len(others)] if others else QUIET for i, key in enumerate(unnamed)
    }
    return [
        {
            "color": colours[key],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
            "lw": 1.8,
            "ms": 6,
        }
        for i, key in enumerate(keys)
    ]


def sequence(n: int, *, dark: bool = False) -> list[str]:
    """Colours of `n` ordered curves, on a light page or on a dark one; the last has the most contrast.

    They are from one colour map, so that their order is visible, even in grey.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    at = [1.0] if n == 1 else [0.25 + 0.75 * i / (n - 1) for i in range(n)]
    # viridis runs from dark to light: late curves take its dark end on white, its light end on black.
    return [to_hex(colormaps["viridis"](0.15 + 0.85 * t if dark else 1 - t)) for t in at]


def dark_colours() -> dict[str, str]:
    """Every colour that changes on a dark page, with what it becomes."""
    changes = dict(DARK)
    for n in range(1, SNAPSHOTS + 1):
        changes.update(zip(sequence(n), sequence(n, dark=True), strict=True))
    return changes


def files(figure: Figure) -> dict[str, bytes]:
    """The files of the figure by suffix: "svg" (see `svg`), "pdf" and "png" on white."""
    # The layout is computed once: each format would compute it again, which takes longer than drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    found = {"svg": svg(figure)}
    for suffix in ("pdf", "png"):
        content = io.BytesIO()
        # No dates: the same runs give the same bytes.
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        figure.savefig(content, format=suffix, dpi=160, facecolor="white", metadata=metadata)
        found[suffix] = content.getvalue()
    return found


def svg(figure: Figure) -> bytes:
    """The figure as an SVG without background, whose colours follow the reader's preference for light or dark pages.

    The light colours are written as usual, for programs without style sheets; the rules added here replace them on a
    dark page.
    """
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(
        {"svg.hashsalt": "iaat_fast", "svg.fonttype": "path", "image.composite_image": False}
    ):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue().decode()
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in dark_colours().items()
        for what in ("fill", "stroke")
        if f"{what}: {light}" in text
    )
    head, tag, rest = text.partition("<defs>")
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>\n "
    return f"{head}{style}{tag}{rest}".encode()
