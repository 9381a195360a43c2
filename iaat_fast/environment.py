"""The device that a command asks for, and what a run ran on (versions, hardware, commit) for `env.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import iaat_fast
from iaat_fast import ops


def resolve_device(name: str) -> torch.device:
    """The device called "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r}, expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"device: {name!r}, expected auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {name!r}, expected cpu: this torch sees no GPU")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name!r}, expected one of the {torch.cuda.device_count()} GPUs, from cuda:0"
        )
    return torch.device("cuda", index)


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, git commit (if the package is run from a checkout) and native build."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "iaat_fast": iaat_fast.__version__,
        "commit": _commit(),
        "backend": ops.backend(device),
        "native": _native_build(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("torch", "torchvision", "numpy")},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native_build() -> dict[str, Any] | None:
    try:
        from iaat_fast import _C
    except ImportError:
        return None
    return dict(_C.build_info())


def _commit() -> str | None:
    """The commit of the checkout the package runs from, with "+changes" if files differ."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout

    try:
        # An installed copy may lie inside another repository, which does not track this file.
        git("ls-files", "--error-unmatch", here.name)
        commit = git("rev-parse", "HEAD").strip()
        return commit + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
