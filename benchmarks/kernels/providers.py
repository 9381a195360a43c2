"""Who is measured: the backends that load on a device, and the two baselines."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.kernels import expressions
from benchmarks.kernels.cases import Case
from iaat_fast.ops import backends

BACKENDS = ("native", "triton", "reference")
BASELINES = ("eager", "compile")

Call = Callable[..., object]


class Missing(Exception):
    """A provider that cannot run here; the message says why."""


def provider(name: str, case: Case, device: torch.device) -> Call:
    """A function of the arguments of the case's schema (baselines: of those that `prepared` makes).

    Raises:
        Missing: the backend does not load on this device, or has no such op.
    """
    if name == "eager":
        return _expression(case)
    if name == "compile":
        # Without a reset the ninth shape of an expression would hit torch's limit of recompilations.
        torch.compiler.reset()
        return torch.compile(_expression(case), fullgraph=True, dynamic=False)
    module = _module(name, device)
    if not hasattr(module, case.op):
        raise Missing(f"{name} has no {case.op}")
    return getattr(module, case.op)


def _expression(case: Case) -> Call:
    return getattr(expressions, case.op)


def _module(name: str, device: torch.device) -> object:
    try:
        return backends.load(name, device)
    except backends.Unavailable as error:
        raise Missing(str(error)) from error
