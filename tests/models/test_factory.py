"""A user's own model, by the name of its callable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from iaat_fast.models import load_factory

SOURCE = """
import torch

class Net(torch.nn.Module):
    @staticmethod
    def small():
        return torch.nn.Linear(2, 3)

def make(outputs=5):
    return torch.nn.Linear(2, outputs)

def number():
    return 7

constant = 7
"""


@pytest.fixture(autouse=True)
def user_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_net.py").write_text(SOURCE)
    (tmp_path / "user_broken.py").write_text("import no_such_dependency\n")
    (tmp_path / "user_syntax.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_functions_classes_and_their_methods_are_factories() -> None:
    assert load_factory("user_net:make")()(torch.rand(1, 2)).shape == (1, 5)
    assert load_factory("user_net:make")(outputs=4)(torch.rand(1, 2)).shape == (1, 4)
    assert isinstance(load_factory("user_net:Net")(), nn.Module)
    assert load_factory("user_net:Net.small")()(torch.rand(1, 2)).shape == (1, 3)


@pytest.mark.parametrize("spec", ["", "user_net", "user_net:", ":make"])
def test_another_form_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'package\.module:function'"):
        load_factory(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:make", "importing no_such_module failed: ModuleNotFoundError"),
        ("user_broken:make", "importing user_broken failed: .*no_such_dependency"),
        ("user_syntax:make", "importing user_syntax failed: SyntaxError"),
        (".relative:make", r"importing \.relative failed"),
        ("user_net:made", "has no 'made'"),
        ("user_net:Net.large", "has no 'large'"),
    ],
)
def test_what_cannot_be_imported_is_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"model factory '{spec}': .*{message}"):
        load_factory(spec)


def test_what_gives_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="int, expected a callable"):
        load_factory("user_net:constant")
    with pytest.raises(TypeError, match=r"returned int, expected an nn\.Module"):
        load_factory("user_net:number")()
