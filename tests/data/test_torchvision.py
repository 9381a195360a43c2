"""Importing torchvision, and a user's model that imports it, whether or not its compiled ops load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forked import Forked

pytestmark = pytest.mark.slow  # of the quick tests only these would start the forking server


def run(code: str, folder: Path) -> str:
    """Standard output of `code` in a process of its own, which has torch and has not yet imported torchvision."""
    unimported = 'import sys; assert "torchvision" not in sys.modules\n'
    (folder / "user_code.py").write_text(unimported + code)
    process = Forked("user_code", cwd=folder)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip()


def test_data_sets_are_imported_in_a_fresh_process(tmp_path: Path) -> None:
    code = "from iaat_fast.data._torchvision import datasets; print(datasets().CIFAR10.base_folder)"
    assert run(code, tmp_path) == "cifar-10-batches-py"


@pytest.mark.parametrize("where", ["module", "function"])
def test_a_users_module_may_import_torchvision(where: str, tmp_path: Path) -> None:
    own = "import torchvision\n" if where == "module" else ""
    inner = "" if own else "import torchvision; "
    (tmp_path / "user_net.py").write_text(
        f"{own}def make():\n    {inner}return torchvision.models.squeezenet1_0(num_classes=3)\n"
    )
    code = """
from iaat_fast.models import load_factory
print(type(load_factory("user_net:make")()).__name__)
"""
    assert run(code, tmp_path) == "SqueezeNet"


def test_schemas_that_exist_are_not_declared_again(tmp_path: Path) -> None:
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
    assert run(code, tmp_path) == "None"
