"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) through torchvision, from a folder or downloaded."""

from __future__ import annotations

import http.client
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iaat_fast.data._torchvision import datasets
from iaat_fast.data.splits import ImageData, Split

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
# torchvision sets no limit itself: a connection silently dropped would hang for ever.
NETWORK_TIMEOUT_S = 30.0


def load_cifar(name: str, folder: Path, *, download: bool) -> ImageData:
    """Load "cifar10" or "cifar100" from `folder`, downloading it there if allowed and absent.

    `folder` holds the extracted `cifar-10-batches-py` or `cifar-100-python` (or is it), or the
    archive as downloaded. Every file's MD5 is compared with its authors' before the file is opened.
    Files that are there but wrong are never overwritten.

    Raises:
        FileNotFoundError: the data or one of its files is missing, or could not be downloaded.
        ValueError: a file is truncated or its checksum is wrong.
    """
    cifar = datasets().CIFAR10 if name == "cifar10" else datasets().CIFAR100
    folder = folder.absolute()
    root = folder.parent if folder.name == cifar.base_folder else folder
    if not (root / cifar.base_folder).is_dir():
        _obtain(cifar, name, root, download)
    try:
        train, test = cifar(root, train=True), cifar(root, train=False)
    except RuntimeError:
        _raise_what_is_wrong(cifar, root / cifar.base_folder)
        raise
    return ImageData(name, _to_split(train), _to_split(test), CIFAR_CLASSES[name])


def _to_split(dataset: Any) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(dataset.data)),
        torch.tensor(dataset.targets, dtype=torch.int64),
    )


def _obtain(cifar: Any, name: str, root: Path, download: bool) -> None:
    """Put `cifar.base_folder` into `root`, whole or not at all, from the archive there or from the authors' site."""
    from torchvision.datasets.utils import check_md5, extract_archive

    archive = root / cifar.filename
    wanted = f"expected {cifar.base_folder} or {cifar.filename} there"
    if archive.is_file():
        if not check_md5(archive, cifar.tgz_md5):
            raise ValueError(
                f"{archive}: truncated or damaged: {archive.stat().st_size} bytes whose MD5 is not "
                f"the expected {cifar.tgz_md5}; delete it to download it again"
            )
    elif not download:
        raise FileNotFoundError(f"{root}: holds no {name}: {wanted}")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as unfinished:
        if archive.is_file():
            extract_archive(archive, unfinished)
        else:
            try:
                with _network_timeout():
                    cifar(unfinished, download=True)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                raise FileNotFoundError(
                    f"{root}: holds no {name} and its download from {cifar.url} failed ({error}); "
                    f"give the path of a folder with {cifar.base_folder} or of an .npz (--data)"
                ) from error
        try:
            (Path(unfinished) / cifar.base_folder).rename(root / cifar.base_folder)
        except OSError:
            # Another process of the same run may have been faster: its files are the same.
            if not (root / cifar.base_folder).is_dir():
                raise


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _raise_what_is_wrong(cifar: Any, folder: Path) -> None:
    """Name the file for which torchvision only says "not found or corrupted"."""
    from torchvision.datasets.utils import calculate_md5

    meta = [cifar.meta["filename"], cifar.meta["md5"]]
    for filename, expected in [*cifar.train_list, *cifar.test_list, meta]:
        file = folder / filename
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing, expected a file with MD5 {expected}")
        if (found := calculate_md5(file)) != expected:
            raise ValueError(
                f"{file}: truncated or damaged: {file.stat().st_size} bytes with MD5 {found}, "
                f"expected MD5 {expected}; delete {folder} to download it again"
            )
