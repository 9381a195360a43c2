"""What a figure was measured on, kept beside it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from iaat_fast import __version__
from iaat_fast.ops import backend


def describe() -> dict[str, Any]:
    """Processor, threads, versions and commit."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "iaat_fast": __version__,
        "commit": commit.stdout.strip(),
        "backend": backend("cpu"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
