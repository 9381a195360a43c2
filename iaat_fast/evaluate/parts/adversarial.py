"""The part "adversarial", and the files of adversarial examples: kept while an attack runs, scored on any model.

x_adv    float32 [N, C, H, W], the images that the verdicts are based on: for a sample that is not robust the first
         that fooled the model, else the last iterate of the last restart
y        int64 [N], true classes
about    JSON: the measurement's row, and "crafted_on", the model
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iaat_fast.attacks.model import attacked, logits_of
from iaat_fast.data import fetch
from iaat_fast.evaluate.eval_target import EvalTarget
from iaat_fast.evaluate.parts.part import Context, Part, Settings
from iaat_fast.evaluate.record import Record, rounded
from iaat_fast.evaluate.results import OVERWRITE
from iaat_fast.evaluate.shared_pgd import correct
from iaat_fast.storage import naming, replacing


class AdversarialFiles:
    """The files KEY.npz in a folder. Until a measurement is finished, its images are in a hidden .npy file there.

    The hidden files have their full size from the start, so that a full disk is noticed before work is lost.

    Args:
        folder: of the files; created if missing.
        keys: of the measurements.
        target: whose samples are attacked.
        fresh: start new hidden files; False: continue those of the same attack.

    Raises:
        OSError: there is no room for the images of all samples, or a file cannot be written; the message names it.
    """

    def __init__(
        self, folder: Path, keys: Sequence[str], target: EvalTarget, *, fresh: bool
    ) -> None:
        self._folder, self._labels = folder, target.split.labels.cpu().numpy()
        first, _ = fetch(target.split, torch.zeros(1, dtype=torch.int64))
        shape = (len(target.split), *first.shape[1:])
        described = {"descr": "<f4", "fortran_order": False, "shape": shape}
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, described)
        self._offset = len(head.getvalue())
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, FileIO] = {}
        for key in keys:
            file = self._partial(key)
            with naming(file):
                self._open[key] = FileIO(file, "w+" if fresh or not file.exists() else "r+")
                try:
                    _write_at(self._open[key], head.getbuffer(), 0)
                    _allocate(self._open[key], self._offset + 4 * math.prod(shape))
                except OSError:
                    for unused in self._open.copy():
                        self.discard(unused)
                    raise

    def keep(self, key: str, index: Tensor, x_adv: Tensor) -> None:
        """Put the images x_adv [n, C, H, W] of the samples `index` in the file of this key.

        Raises:
            OSError: it cannot be written; the message names it.
        """
        images = np.ascontiguousarray(x_adv.detach().cpu().numpy())
        with naming(self._partial(key)):
            # Not by a memory map: a failed write to it is a signal (SIGBUS), not an OSError.
            for number, image in zip(index.tolist(), images, strict=True):
                place = self._offset + number * image.nbytes
                _write_at(self._open[key], image.data.cast("B"), place)

    def flush(self) -> None:
        """Flush the images kept so far to disk."""
        for key, opened in self._open.items():
            with naming(self._partial(key)):
                os.fsync(opened.fileno())

    def finish(self, key: str, about: dict[str, Any]) -> None:
        """Write the .npz file of this key. The hidden file stays until `discard`, in case of a kill in between."""
        images = np.load(self._partial(key), mmap_mode="r", allow_pickle=False)
        with replacing(self._folder / f"{key}.npz") as target:
            np.savez(target, x_adv=images, y=self._labels, about=np.array(json.dumps(about)))

    def discard(self, key: str) -> None:
        """Remove the hidden file of this key."""
        if key in self._open:
            self._open.pop(key).close()
        self._partial(key).unlink(missing_ok=True)

    def _partial(self, key: str) -> Path:
        return self._folder / f".{key}.npy.tmp"


def _write_at(file: FileIO, content: memoryview, place: int) -> None:
    while content:
        written = os.pwrite(file.fileno(), content, place)
        content, place = content[written:], place + written


def _allocate(file: FileIO, size: int) -> None:
    """Give `file` this size and reserve the space on disk; its content stays."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS
        file.truncate(size)


def load_adversarial(file: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images float32 [N, C, H, W], classes int64 [N], and "about" (see above) of a file of saved examples.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged or holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--adversarial {file}: no such file")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x_adv, y = torch.from_numpy(arrays["x_adv"]), torch.from_numpy(arrays["y"])
            about = json.loads(str(arrays["about"]))
    # Damaged bytes may raise anything in zipfile and numpy.
    except Exception as error:
        raise ValueError(
            f"--adversarial {file}: not a file of saved adversarial examples ({error})"
        ) from error
    if x_adv.dtype != torch.float32 or x_adv.dim() != 4 or y.shape != x_adv.shape[:1]:
        raise ValueError(
            f"--adversarial {file}: images {x_adv.dtype} {list(x_adv.shape)}, classes {list(y.shape)}; expected "
            "float32 [N, C, H, W] and [N]"
        )
    return x_adv, y, about


def check_adversarial(target: EvalTarget, file: Path) -> None:
    """Raise ValueError unless the saved examples are of the target's samples."""
    x_adv, y, _ = load_adversarial(file)
    labels = target.split.labels.cpu()
    if len(y) != len(labels) or not torch.equal(y, labels):
        raise ValueError(
            f"--adversarial {file}: {len(y)} samples whose classes are not those of the {len(labels)} measured here; "
            "expected examples of the same data set and --limit"
        )
    first, _ = fetch(target.split, torch.zeros(1, dtype=torch.int64))
    if x_adv.shape[1:] != first.shape[1:]:
        raise ValueError(
            f"--adversarial {file}: images {list(x_adv.shape[1:])}, those measured here are "
            f"{list(first.shape[1:])}"
        )


def score(target: EvalTarget, file: Path, *, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Which saved examples the target's model classifies correctly, bool [N], and the "about" of their file."""
    x_adv, y, about = load_adversarial(file)
    device = target.split.labels.device
    right = []
    with attacked(target.model, "eval"), torch.no_grad():
        for rows in torch.arange(len(y)).split(batch_size):
            logits = logits_of(target.model, x_adv[rows].to(device))
            right.append(correct(logits, y[rows].to(device)).cpu())
    return torch.cat(right), about


def adversarial_key(file: Path) -> str:
    """Key of the row of a file of saved examples."""
    return f"adversarial-{file.stem}"


def measure(context: Context) -> None:
    """Score saved examples, made on any model, on the target."""
    for file in context.settings.adversarial:
        key = adversarial_key(file)
        if context.record.has(key):
            continue
        started = time.perf_counter()
        verdicts, about = score(context.target, file, batch_size=context.settings.batch_size)
        row = {
            "key": key,
            "kind": "adversarial",
            "part": "adversarial",
            "file": str(file),
            "crafted_on": about,
            "seconds": rounded(time.perf_counter() - started),
        }
        context.record.add(row, {key: verdicts.numpy()})


def _check_files(target: EvalTarget, settings: Settings) -> None:
    """Raise ValueError if a file does not fit the samples, would be removed by `overwrite`, or shares its name."""
    files, folder = settings.adversarial, settings.folder
    for file in files:
        check_adversarial(target, file)
        if settings.overwrite and folder is not None and folder.resolve() in file.resolve().parents:
            raise ValueError(f"--adversarial {file}: lies in what --overwrite removes")
    keys = [adversarial_key(file) for file in files]
    for file, key in zip(files, keys, strict=True):
        if keys.count(key) > 1:
            raise ValueError(f"--adversarial {file}: another file of that name, rename one")


def refuse_other_files(record: Record, files: Sequence[Path]) -> None:
    """Raise ValueError if the record has a row of another file with the same name as one to be scored."""
    scored = {row["key"]: row["file"] for row in record.rows if row["kind"] == "adversarial"}
    for file in files:
        other = scored.get(adversarial_key(file), file)
        if Path(other).resolve() != file.resolve():
            raise ValueError(
                f"--adversarial {file}: {record.path} has {other}, of the same name; rename one, or give another --out"
            )


def keeps_examples(record: Record, asked: bool) -> bool:
    """Whether adversarial examples are kept, which is decided at the start of a record."""
    settings = record.content["settings"]
    if asked and not settings.get("save_adversarial"):
        if any(row["kind"] in ("pgd", "transfer") for row in record.rows) or record.has_progress:
            raise ValueError(
                f"{record.path}: measured without keeping adversarial examples; {OVERWRITE}"
            )
        settings["save_adversarial"] = True
    return bool(settings.get("save_adversarial"))


ADVERSARIAL = Part(
    name="adversarial",
    help="saved adversarial examples, made on any model",
    measure=measure,
    prepare=_check_files,
)
