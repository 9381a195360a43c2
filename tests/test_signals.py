"""Tests that interrupt processes work whoever starts them: also a shell that has them ignore Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
# What a shell without job control does to `pytest &`.
BACKGROUND = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_process_that_a_test_starts_can_be_interrupted() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True)
    assert shown.stdout == "True\n"


@pytest.mark.slow
def test_so_it_can_where_pytest_itself_ignores_ctrl_c() -> None:
    test = f"{__file__}::{test_a_process_that_a_test_starts_can_be_interrupted.__name__}"
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        test,
    ]
    ran = subprocess.run(
        [sys.executable, "-c", BACKGROUND, *pytest],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
