"""A CPU that an attack takes for a GPU: values are checked late, by no op, and every read from the device is seen."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from iaat_fast.attacks import findings
from iaat_fast.ops import checks, reference

# Ops that read a value, or whose result's shape depends on values.
WAITING = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique2",
    "_unique2",
    "unique_dim",
    "bincount",
}
# Methods that bring a tensor to the host; on a CPU no op is called for them.
FETCHING = {"tolist", "numpy", "cpu", "__array__"}


class Recorder(TorchDispatchMode):
    """The names of all ops, in order; indexing with a mask is a nonzero in disguise."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._fetches = _Fetches(self.names)

    def __enter__(self) -> Recorder:
        self._fetches.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fetches.__exit__(*error)

    @property
    def reads(self) -> list[str]:
        """Those that make the host wait for a GPU."""
        return [name for name in self.names if name in WAITING | FETCHING]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ()
        if any(isinstance(i, Tensor) and i.dtype is torch.bool for i in indices):
            name = "nonzero"
        self.names.append(name)
        return function(*args, **(kwargs or {}))


class _Fetches(TorchFunctionMode):
    """Adds the names of methods that bring a tensor to the host."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        there = [*args[1:], *(kwargs or {}).values()] if name == "to" else []
        if name in FETCHING or any(str(argument) == "cpu" for argument in there):
            self._names.append("cpu" if name == "to" else name)
        return function(*args, **(kwargs or {}))


def check_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are checked as on a GPU: beside the work, heard of after it, and by no op.

    The ops are the reference, whose indexing fails where an index is out of range, as a GPU's would, for good.
    """
    monkeypatch.setattr(findings, "checked_late", lambda device: True)
    for name in ("radii_values", "step_values", "class_values", "logit_values", "index_values"):
        monkeypatch.setattr(checks, name, _unchecked(getattr(checks, name)))
    for module in [m for name, m in sys.modules.items() if name.startswith("iaat_fast.attacks")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, torch._ops.OpOverload) and value.namespace == "iaat_fast":
                plain = getattr(reference, value.overloadpacket.__name__)
                monkeypatch.setattr(module, name, plain)


def _unchecked(check: Any) -> Any:
    """The check, but not where the reference makes it."""

    def unless_asked_by_an_op(*args: Any) -> None:
        if sys._getframe(1).f_globals is not vars(reference):
            check(*args)

    return unless_asked_by_an_op
