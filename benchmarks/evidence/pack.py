"""The runs as files of at most 15 MiB, from which another machine continues: `pack` and `unpack`.

For machines that are lent for minutes and give back small files. Of a run that is trained and evaluated the records are
kept, without its checkpoint; of any other the last checkpoint too.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path

from iaat_fast.run_folder import RunFolder
from iaat_fast.storage import replace

PART = 15 * 2**20
"""Bytes of a file."""

_NAME = "evidence-{:03}.tar"
_LEFT_OUT = ("checkpoint-previous.pt", "plots", "tensorboard", "adversarial")


def check_free(parts: Path) -> None:
    """Raise ValueError if the folder `parts` holds files, among which those of `pack` would be mistaken."""
    if parts.is_dir() and any(parts.iterdir()):
        raise ValueError(f"--pack {parts}: holds files, expected an empty folder or none")


def pack(out: Path, parts: Path, finished: Collection[str]) -> list[Path]:
    """Write the runs below `out` to the folder `parts`; returns the files.

    Args:
        finished: names of the run folders of which nothing is left to do.

    Raises:
        ValueError: `parts` holds files already.
    """
    check_free(parts)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for path in sorted(out.rglob("*")):
            inner = path.relative_to(out)
            if path.is_file() and _is_kept(inner, finished):
                archive.add(path, str(inner), recursive=False)
    content, parts_written = whole.getbuffer(), []
    parts.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(content), PART)):
        file = parts / _NAME.format(number)
        replace(file, content[first : first + PART])
        parts_written.append(file)
    return parts_written


def _is_kept(inner: Path, finished: Collection[str]) -> bool:
    if any(part in _LEFT_OUT for part in inner.parts) or inner.parts[0] == "logs":
        return False
    return not (inner.parts[0] in finished and inner.name == RunFolder(inner).checkpoint_path.name)


def unpack(parts: Path, out: Path) -> None:
    """Put the runs of `pack`'s files below `out`, which must not exist.

    Raises:
        FileExistsError: `out` exists.
        ValueError: no files there, one is missing, or they are damaged.
    """
    if out.exists():
        raise FileExistsError(f"{out}: exists, expected a new folder for --unpack")
    files = sorted(parts.glob(_NAME.replace("{:03}", "*")))
    if not files or [file.name for file in files] != [_NAME.format(n) for n in range(len(files))]:
        raise ValueError(
            f"--unpack {parts}: expected all of {_NAME.format(0)}, {_NAME.format(1)}, ..."
        )
    whole = io.BytesIO(b"".join(file.read_bytes() for file in files))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        try:
            with tarfile.open(fileobj=whole, mode="r") as archive:
                archive.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise ValueError(
                f"--unpack {parts}: damaged, or a last file is missing ({error})"
            ) from error
        shutil.copytree(folder, out)
