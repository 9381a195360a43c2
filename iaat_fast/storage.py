"""Files written whole or not at all, JSON, tensors read without running code, a content hash, a lock on a folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError raised by writing it: that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def is_temporary(path: Path) -> bool:
    """Whether `path` is a temporary file that a killed `replace` has left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@contextlib.contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, put at `path` when the block ends: a reader sees the whole old file or the whole new one.

    The old file is kept as `keep`, in the same folder, if that is given. If writing fails, `path` stays as it was.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                _link(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        # The rename is on disk only once the folder is flushed.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace(path: Path, content: bytes | memoryview, *, keep: Path | None = None) -> None:
    """Put `content` at `path`, whole or not at all; see `replacing`."""
    with replacing(path, keep=keep) as file:
        file.write(content)


def check_writable(flag: str, path: Path) -> None:
    """Raise OSError, naming the flag, if the file `path` cannot be written; called before any work is done for it."""
    if path.is_dir():
        raise IsADirectoryError(f"{flag} {path}: is a folder, expected a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{flag} {path}: there is no folder {path.parent}")
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        # By trying: permissions do not tell what root may do in /proc or on a read-only disk.
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise type(error)(
            f"{flag} {path}: {path.parent} is not writable ({error.strerror})"
        ) from error


def check_folder(flag: str, path: Path) -> None:
    """Raise OSError, naming the flag, if files cannot be written into the folder `path`.

    A missing folder is created for the test and removed again.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{flag} {path}: is a file, expected a folder") from error
    except OSError as error:
        raise type(error)(f"{flag} {path}: cannot be made ({error.strerror})") from error
    else:
        check_writable(flag, path / "trial")
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _link(path: Path, name: Path) -> None:
    """Hard-link the file at `path` as `name`, replacing what is there."""
    temporary = name.parent / f".{name.name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        # No hard links on this file system: until `path` is written again, only `name` is there.
        os.replace(path, name)
        return
    try:
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Put `content` at `path` as JSON, atomically."""
    replace(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a run folder with this file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote to `path`, on the CPU, without running any code it may hold.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is cut short, no such file, or holds more than tensors and plain values (it
            is loaded with `weights_only=True`).
    """
    content = io.BytesIO(path.read_bytes())
    try:
        with warnings.catch_warnings():
            # A plain pickle is warned about before it is refused.
            warnings.simplefilter("ignore")
            return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, it holds more than tensors and plain values or is no checkpoint"
        ) from error
    # Damaged bytes end in whatever torch's reader trips over; the disk itself has been read.
    except Exception as error:
        raise ValueError(f"{path}: not a readable checkpoint, probably cut short") from error


def content_hash(value: Any) -> str:
    """The SHA-256, in hexadecimal, of tensors, numbers, strings and None in dicts, lists and tuples.

    It depends on the order of items and on the dtype, shape and elements of a tensor; not on the type of a
    mapping or sequence, nor on a tensor's device and strides.
    """
    hasher = hashlib.sha256()
    _add(hasher, value)
    return hasher.hexdigest()


def _add(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        hasher.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        hasher.update(plain.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        hasher.update(f"mapping {len(value)};".encode())
        for key, inner in value.items():
            _add(hasher, key)
            _add(hasher, inner)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        values = list(value)
        hasher.update(f"sequence {len(values)};".encode())
        for inner in values:
            _add(hasher, inner)
    else:
        hasher.update(f"{type(value).__name__} {value!r};".encode())


_held: set[int] = set()  # descriptors of the folders that this process has locked


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock `folder`, created if missing, against other processes.

    The folder itself is locked (flock): no lock file is left, and the lock ends with its process, even a killed one.
    On a file system without flock (some network ones) nothing is locked.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be created or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"{folder}: another process is at work there; wait for it, or take another folder"
        ) from None
    except OSError:
        return


def _release_in_child() -> None:
    """Close the locks in a forked worker, which would otherwise keep them after its parent was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
