"""Tests that interrupt processes work whoever starts them: also a shell that has them ignore Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SHOWN = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_process_that_a_test_starts_can_be_interrupted() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True)
    assert shown.stdout == "True\n"


def test_so_it_can_where_pytest_itself_ignores_ctrl_c() -> None:
    test = f"{__file__}::{test_a_process_that_a_test_starts_can_be_interrupted.__name__}"
    pid = os.fork()
    if not pid:
        # What a shell without job control does to `pytest &`.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os._exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", test]))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
