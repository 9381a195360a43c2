"""Importing torchvision, and a user's model that imports it, whether or not its compiled ops load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts a Python


def run(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_data_sets_are_imported_in_a_fresh_process() -> None:
    code = "from iaat_fast.data._torchvision import datasets; print(datasets().CIFAR10.base_folder)"
    assert run(code) == "cifar-10-batches-py"


@pytest.mark.parametrize("where", ["module", "function"])
def test_a_users_module_may_import_torchvision(where: str, tmp_path: Path) -> None:
    own = "import torchvision\n" if where == "module" else ""
    inner = "" if own else "import torchvision; "
    (tmp_path / "user_net.py").write_text(
        f"{own}def make():\n    {inner}return torchvision.models.squeezenet1_0(num_classes=3)\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from iaat_fast.models import load_factory
print(type(load_factory("user_net:make")()).__name__)
"""
    assert run(code) == "SqueezeNet"


def test_schemas_that_exist_are_not_declared_again() -> None:
    """Where torchvision's ops load, its own schemas are there first; a second one would raise."""
    code = """
import torch
own = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    own.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from iaat_fast import torchvision_ops
print(torchvision_ops.declare())
import torchvision
"""
    assert run(code) == "None"
