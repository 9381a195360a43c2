"""The folder of a report: only what a report wrote there is ever replaced, and each file whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iaat_fast.storage import is_temporary, naming, read_json, replace

MANIFEST = "report.json"
PAGE = "index.html"


def owned(out: Path) -> set[str]:
    """The files that an earlier report wrote into `out`, by their path in it.

    Raises:
        NotADirectoryError: `out` is no folder.
        FileExistsError: it holds something and no report.
        ValueError: its `report.json` is damaged, or none of a report.
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
    """Put a report into `out`: a new folder in one step; in an old one file by file, the page last.

    Whoever reads meanwhile sees every file whole. What an earlier report wrote and this one does not is removed;
    all else in the folder stays.

    Args:
        files: contents by path in the folder, `index.html` among them.
        out: the folder.
        facts: what `report.json` says beside the list of files.

    Raises:
        OSError: a file cannot be written, or is there and no report wrote it; `out` holds something and no report.
    """
    check_free(out, {*files, MANIFEST})
    before = owned(out)
    if not out.exists() or not any(out.iterdir()):
        _publish_new(files, out, facts)
        return
    # Claimed before they are written: cut short, the next report may still replace all of them.
    replace(out / MANIFEST, _manifest({*files, *before}, facts))
    for name in sorted(files, key=lambda name: name == PAGE):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        replace(out / name, files[name])
    for name in before - {*files, MANIFEST}:
        (out / name).unlink(missing_ok=True)
    replace(out / MANIFEST, _manifest(set(files), facts))


def _publish_new(files: Mapping[str, bytes], out: Path, facts: Mapping[str, Any]) -> None:
    beside = out.resolve().parent / f".{out.resolve().name}.{os.getpid()}.tmp"
    with naming(out):
        beside.parent.mkdir(parents=True, exist_ok=True)
        try:
            for name, content in {**files, MANIFEST: _manifest(set(files), facts)}.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                with open(beside / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(beside, out.resolve())
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _manifest(names: set[str], facts: Mapping[str, Any]) -> bytes:
    return (json.dumps({**facts, "files": sorted(names - {MANIFEST})}, indent=2) + "\n").encode()


def _inside(name: str) -> bool:
    """Whether a listed name stays in the folder: a damaged list must not delete elsewhere."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and not is_temporary(path)
