"""compute-sanitizer finds no access out of bounds and no race in the CUDA kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iaat_fast.ops import backends

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("sanitize.py")
FOUND = 99  # the exit status that stands for errors found by the tool


@pytest.mark.timeout(100)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    try:
        backends.load("native", torch.device("cuda"))
    except backends.Unavailable as error:
        pytest.skip(str(error))
    root = PROGRAM.parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "IAAT_FAST_BACKEND": "",
    }
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, PROGRAM]
    run = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=95
    )
    printed = run.stdout + run.stderr
    refusals = [line for line in printed.splitlines() if "not supported" in line.lower()]
    if refusals and "ERROR SUMMARY" not in printed.replace("ERROR SUMMARY: 0 errors", ""):
        pytest.skip(f"compute-sanitizer cannot work here: {refusals[0].strip()}")
    assert run.returncode == 0, printed[-6000:]
    assert " calls" in run.stdout
