"""Importing torchvision's data sets, whether or not its compiled ops load."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each starts a Python


def run(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_data_sets_are_imported_in_a_fresh_process() -> None:
    code = "from iaat_fast.data._torchvision import datasets; print(datasets().CIFAR10.base_folder)"
    assert run(code) == "cifar-10-batches-py"


def test_schemas_that_exist_are_not_declared_again() -> None:
    """Where torchvision's ops load, its own schemas are there first; a second one would raise."""
    code = """
import torch
own = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    own.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from iaat_fast.data import _torchvision
_torchvision.datasets()
print(_torchvision._schemas.cache_info().currsize)
"""
    assert run(code) == "0"
