"""Adversarial examples in files: kept while an attack runs, whole or absent, and scored on any model.

x_adv    float32 [N, C, H, W], the images that the verdicts were given on: of a sample that fell the first that
         fooled the model, else the last iterate of the last restart
y        int64 [N], true classes
about    JSON: the measurement's row, and "crafted_on", the model
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iaat_fast.attacks.model_state import attacked, logits_of
from iaat_fast.data import fetch
from iaat_fast.evaluate.subject import Subject
from iaat_fast.evaluate.trajectories import correct
from iaat_fast.files import naming


class AdversarialFiles:
    """The files KEY.npz in a folder. Until a measurement is finished its images lie in a hidden file beside.

    Args:
        folder: where they go; made where it does not exist.
        subject: whose samples are attacked.
        anew: what hidden files hold is of another attack.
    """

    def __init__(self, folder: Path, subject: Subject, *, anew: bool) -> None:
        self._folder, self._split, self._anew = folder, subject.split, anew
        self._open: dict[str, np.memmap] = {}

    def keep(self, key: str, index: Tensor, x_adv: Tensor) -> None:
        """Put the images x_adv [n, C, H, W] of the samples `index` in the file of this key."""
        if key not in self._open:
            self._folder.mkdir(parents=True, exist_ok=True)
            file, shape = self._partial(key), (len(self._split), *x_adv.shape[1:])
            mode = "w+" if self._anew or not file.exists() else "r+"
            with naming(file):
                self._open[key] = np.lib.format.open_memmap(
                    file, mode=mode, dtype=np.float32, shape=shape
                )
        self._open[key][index.numpy()] = x_adv.detach().cpu().numpy()

    def flush(self) -> None:
        """Put on disk what was kept."""
        for images in self._open.values():
            images.flush()

    def finish(self, key: str, about: dict[str, Any]) -> None:
        """Make the file of this key, whole. The hidden file stays until `discard`: a kill in between costs nothing."""
        partial, file = self._partial(key), self._folder / f"{key}.npz"
        images = self._open.get(key)
        if images is None:  # it resumes after the last verdict
            images = np.load(partial, mmap_mode="r", allow_pickle=False)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        labels = self._split.labels.cpu().numpy()
        with naming(file):
            try:
                with open(temporary, "wb") as target:
                    np.savez(target, x_adv=images, y=labels, about=np.array(json.dumps(about)))
                    target.flush()
                    os.fsync(target.fileno())
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Remove the hidden file of this key."""
        self._open.pop(key, None)
        self._partial(key).unlink(missing_ok=True)

    def _partial(self, key: str) -> Path:
        return self._folder / f".{key}.npy.tmp"


def load_adversarial(file: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images float32 [N, C, H, W], classes int64 [N], and what is known about them.

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
    # Damaged bytes end in whatever zipfile and numpy trip over.
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


def check_adversarial(subject: Subject, file: Path) -> None:
    """Raise ValueError unless the saved examples are of the subject's samples."""
    x_adv, y, _ = load_adversarial(file)
    labels = subject.split.labels.cpu()
    if len(y) != len(labels) or not torch.equal(y, labels):
        raise ValueError(
            f"--adversarial {file}: {len(y)} samples whose classes are not those of the {len(labels)} measured here; "
            "expected examples of the same data set and --limit"
        )
    first, _ = fetch(subject.split, torch.zeros(1, dtype=torch.int64))
    if x_adv.shape[1:] != first.shape[1:]:
        raise ValueError(
            f"--adversarial {file}: images {list(x_adv.shape[1:])}, those measured here are "
            f"{list(first.shape[1:])}"
        )


def score(subject: Subject, file: Path, *, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Which saved examples the subject's model classifies correctly, bool [N], and what is known about them."""
    x_adv, y, about = load_adversarial(file)
    device = subject.split.labels.device
    right = []
    with attacked(subject.model, "eval"), torch.no_grad():
        for rows in torch.arange(len(y)).split(batch_size):
            logits = logits_of(subject.model, x_adv[rows].to(device))
            right.append(correct(logits, y[rows].to(device)).cpu())
    return torch.cat(right), about
