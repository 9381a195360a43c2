"""A drawing: a figure with what is said of it, and its files: SVG for light and dark pages, PDF, PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iaat_fast.report.figures.style import dark_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of the paper, drawn from runs.

    Args:
        number: in the paper.
        stem: of its files, `figure-3-cifar10-resnet18`.
        title: what it shows.
        caption: of which runs, how measured, by which rule chosen.
        alt: what a reader who does not see it should know.
        figure: matplotlib's.
    """

    number: int
    stem: str
    title: str
    caption: str
    alt: str
    figure: Figure


def files(figure: Figure) -> dict[str, bytes]:
    """The figure by suffix: "svg" (see `svg`), "pdf" and "png" on white."""
    # Laid out once: every format would do it again, which takes longer than drawing.
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
    """The figure as an SVG without background whose colours follow the reader's choice of light or dark.

    The colours are written out as usual, so programs that know no style sheets show the light ones; the rules added
    here only replace them on a dark page.
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
