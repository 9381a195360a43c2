"""`build_report`: a report from run folders, with tables, figures and one page that shows them all.

In the folder of a report only files that a report has written are replaced, each atomically.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import iaat_fast
from iaat_fast.report.figures import Drawing, TrainingImages, draw_figures
from iaat_fast.report.figures.drawing import files as figure_files
from iaat_fast.report.formats import FORMATS, Table
from iaat_fast.report.groups import group
from iaat_fast.report.page import PageFigure, render
from iaat_fast.report.records import read_records
from iaat_fast.report.tables import build_tables
from iaat_fast.report.transfers import transfer_tables
from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import is_temporary, naming, read_json, replace

MANIFEST = "report.json"
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The files of a report.

    Args:
        page: path of the page.
        tables, figures: names of their files, without suffix.
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
    transfer: Sequence[str | os.PathLike[str]] = (),
) -> Report:
    """Write the tables and figures of the paper, as far as these runs allow, and a page that shows all of them.

    Args:
        folders: run folders; one page may hold several data sets and networks.
        out: the folder to write: `index.html`, `tables/*.md, *.csv, *.tex` and `figures/*.svg, *.pdf, *.png`. In a
            folder that exists, only files of an earlier report are replaced.
        evaluation: name of the evaluation of each run to report; by default the complete one with the most samples.
        data: folder or `.npz` of the training images for the galleries; by default the runs' own.
        transfer: files of `TransferMatrix.save`, a table each.

    Raises:
        FileNotFoundError: no such run or file, or no evaluation of that name.
        ValueError: no runs; runs that cannot be in one table; a damaged file. The message names them.
        OSError: `out` cannot be written, is a folder with other content than a report, or has a file of the same name
            that no report wrote.
    """
    out = Path(out)
    # Before any work, which may include attacks.
    check_free(out, {PAGE, MANIFEST})
    runs = [f if isinstance(f, RunFolder) else RunFolder(f) for f in folders]
    records = read_records(runs, evaluation=evaluation)
    groups = group(records)
    tables = [*build_tables(groups), *transfer_tables(groups, transfer)]
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


def owned(out: Path) -> set[str]:
    """The files that an earlier report wrote into `out`, by their path in it.

    Raises:
        NotADirectoryError: `out` is no folder.
        FileExistsError: it is a folder with other content than a report.
        ValueError: its `report.json` is damaged, or not that of a report.
    """
    if not out.exists():
        return set()
    if not out.is_dir():
        raise NotADirectoryError(f"{out}: expected a folder for the report, found a file")
    if not (out / MANIFEST).is_file():
        if all(is_temporary(entry) for entry in out.iterdir()):
            return set()
        raise FileExistsError(
            f"{out}: exists and is no report's folder (no {MANIFEST} in it); choose another --out"
        )
    files = read_json(out / MANIFEST).get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ValueError(f"{out / MANIFEST}: not written by a report; choose another --out")
    return {name for name in files if _inside(name)} | {MANIFEST}


def check_free(out: Path, names: set[str]) -> None:
    """Raise FileExistsError if one of these files is there and no report wrote it; see `owned`."""
    foreign = sorted(name for name in names - owned(out) if (out / name).exists())
    if foreign:
        raise FileExistsError(
            f"{out / foreign[0]}: exists and no report wrote it; move it away or choose another --out"
        )


def publish(files: Mapping[str, bytes], out: Path, facts: Mapping[str, Any]) -> None:
    """Put a report into `out`: a new folder in one step, an existing one file by file, the page last.

    A reader sees every file whole at any time. Files of an earlier report that this one does not have are removed;
    other files in the folder stay.

    Args:
        files: contents by path in the folder, including `index.html`.
        out: the folder.
        facts: what `report.json` holds apart from the list of files.

    Raises:
        OSError: a file cannot be written, or is there and no report wrote it; or see `owned`.
    """
    check_free(out, {*files, MANIFEST})
    before = owned(out)
    if not out.exists() or not any(out.iterdir()):
        _publish_new(files, out, facts)
        return
    # Listed before they are written: if this is killed, the next report may still replace all of them.
    replace(out / MANIFEST, _manifest({*files, *before}, facts))
    for name in sorted(files, key=lambda name: name == PAGE):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        replace(out / name, files[name])
    for name in before - {*files, MANIFEST}:
        (out / name).unlink(missing_ok=True)
    replace(out / MANIFEST, _manifest(set(files), facts))


def _publish_new(files: Mapping[str, bytes], out: Path, facts: Mapping[str, Any]) -> None:
    scratch = out.resolve().parent / f".{out.resolve().name}.{os.getpid()}.tmp"
    with naming(out):
        scratch.parent.mkdir(parents=True, exist_ok=True)
        try:
            for name, content in {**files, MANIFEST: _manifest(set(files), facts)}.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                with open(scratch / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(scratch, out.resolve())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _manifest(names: set[str], facts: Mapping[str, Any]) -> bytes:
    return (json.dumps({**facts, "files": sorted(names - {MANIFEST})}, indent=2) + "\n").encode()


def _inside(name: str) -> bool:
    """Whether a listed name is inside the folder: a damaged list must not delete files elsewhere."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and not is_temporary(path)
