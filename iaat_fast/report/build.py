"""A report from run folders: tables, figures and one page that holds them all."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import iaat_fast
from iaat_fast.report.figures import Drawing, TrainingImages, draw_figures
from iaat_fast.report.figures.drawing import files as figure_files
from iaat_fast.report.formats import FORMATS
from iaat_fast.report.groups import group
from iaat_fast.report.output import MANIFEST, PAGE, check_free, publish
from iaat_fast.report.page import PageFigure, render
from iaat_fast.report.records import read_records
from iaat_fast.report.tables import Table, build_tables
from iaat_fast.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written.

    Args:
        page: the page.
        tables, figures: names of their files without suffix.
        missing: what could not be shown, and why.
    """

    page: Path
    tables: tuple[str, ...]
    figures: tuple[str, ...]
    missing: tuple[str, ...]


def build_report(
    folders: Sequence[RunFolder | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    evaluation: str | None = None,
    data: str | None = None,
) -> Report:
    """Write the tables and figures of the paper, as far as these runs have them, and a page that shows all.

    Args:
        folders: run folders; one page may hold several data sets and networks.
        out: the folder to write: `index.html`, `tables/*.md, *.csv, *.tex` and `figures/*.svg, *.pdf, *.png`. Of a
            folder that exists only what an earlier report wrote is replaced.
        evaluation: name of the evaluation of each run to report; by default the complete one with the most samples.
        data: folder or `.npz` of the training images for the galleries; by default where the runs found them.

    Raises:
        FileNotFoundError: no such run, or no evaluation of that name.
        ValueError: no runs; runs that cannot stand in one table; a damaged file. Each is named.
        OSError: `out` cannot be written, or holds something and no report, or a file that no report wrote in the way.
    """
    out = Path(out)
    # Before any work: attacks may follow.
    check_free(out, {PAGE, MANIFEST})
    runs = [f if isinstance(f, RunFolder) else RunFolder(f) for f in folders]
    records = read_records(runs, evaluation=evaluation)
    groups = group(records)
    tables = build_tables(groups)
    images = TrainingImages(path=data)
    drawings = draw_figures(groups, images)
    files = {**_table_files(tables), **_figure_files(drawings)}
    page = render(
        groups,
        tables,
        [
            PageFigure(drawing=drawing, svg=files[f"figures/{drawing.stem}.svg"])
            for drawing in drawings
        ],
        missing=images.missing,
    )
    files[PAGE] = page.encode()
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "iaat_fast": iaat_fast.__version__,
        "command": sys.argv,
        "runs": [record.name for record in records],
    }
    publish(files, out, facts)
    return Report(
        page=out / PAGE,
        tables=tuple(table.stem for table in tables),
        figures=tuple(drawing.stem for drawing in drawings),
        missing=(*(text for record in records for text in record.left_out), *images.missing),
    )


def _table_files(tables: Sequence[Table]) -> dict[str, bytes]:
    return {
        f"tables/{table.stem}.{suffix}": write(table).encode()
        for table in tables
        for suffix, write in FORMATS.items()
    }


def _figure_files(drawings: Sequence[Drawing]) -> dict[str, bytes]:
    return {
        f"figures/{drawing.stem}.{suffix}": content
        for drawing in drawings
        for suffix, content in figure_files(drawing.figure).items()
    }
