"""Describes the machine, versions and commit that a record was measured with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from iaat_fast import __version__
from iaat_fast.ops import backend

# Read, never set: a result is valid for the clocks it was measured at.
GPU_QUERY = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "max_sm_clock_mhz": "clocks.max.sm",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}

_NOISE = re.compile(r"nvidia|geforce|tesla|amd|intel|processor|cpu|gpu|\d+-core|\d+gb|hbm\w+|pcie")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, threads, versions and commit; for "cuda" also the GPU, its driver and its current clocks."""
    found = {
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "iaat_fast": __version__,
        "commit": commit(),
        "backend": backend(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    return {**found, **_gpu()} if device == "cuda" else found


def short(device: str = "cpu") -> str:
    """The machine in a word for file names: "h100", "epyc-avx2"."""
    if device == "cuda":
        return short_name(torch.cuda.get_device_name())
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"{short_name(_cpu())}-{capability if capability.startswith('avx') else 'base'}"


def short_name(name: str) -> str:
    """A processor's or GPU's name without its maker, memory and connector: "xeon", "rtx-4090"."""
    words = re.sub(r"\(\w+\)|@.*", " ", name).lower().split()
    left = [word for word in words if not _NOISE.fullmatch(word)]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(left)).strip("-") or "machine"


def commit() -> str:
    """`git describe` of the checkout, else the environment variable IAAT_FAST_COMMIT of a copy without git."""
    try:
        described = subprocess.run(
            ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except OSError:
        described = ""
    return described or os.environ.get("IAAT_FAST_COMMIT", "")


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].split(":")[1].strip()
    return platform.processor()


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "triton": triton,
        "extension": _extension(),
        **_nvidia_smi(),
    }


def _extension() -> dict[str, Any] | None:
    """The compilers and target GPUs of the extension; None if it is not built."""
    try:
        from iaat_fast import _C
    except ImportError:
        return None
    return dict(_C.build_info())


def _nvidia_smi() -> dict[str, str]:
    query = f"--query-gpu={','.join(GPU_QUERY.values())}"
    number = str(torch.cuda.current_device())
    command = ["nvidia-smi", "-i", number, query, "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_QUERY, (field.strip() for field in line.split(",")), strict=False))
