"""Modules whose forward waits for other ranks: DistributedDataParallel is bypassed, sharded modules are refused."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# (module, class) pairs, looked up in sys.modules: importing them here would take seconds.
_WAITING = (
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
    ("torch.distributed._composable.replicate", "DDP"),
)


def unwrap_ddp(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The module in a DistributedDataParallel wrapper, whose hooks an attack must not run; else the model itself."""
    owner: Any = model
    if isinstance(model, types.MethodType) and model.__name__ in ("forward", "__call__"):
        owner = model.__self__
    return owner.module if isinstance(owner, DistributedDataParallel) else model


def has_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def refuse_sharded(modules: list[nn.Module]) -> None:
    """Raise ValueError for modules whose forward needs all ranks: if one rank took fewer forwards, all would hang."""
    if not has_ranks() or torch.distributed.get_world_size() == 1:
        return
    kinds = tuple(
        getattr(sys.modules[file], name) for file, name in _WAITING if file in sys.modules
    )
    for module in modules:
        if isinstance(module, kinds) or any(map(_is_sharded, module._parameters.values())):
            raise ValueError(
                f"model: {type(module).__name__} is spread over ranks, each forward of which waits for the others; "
                "expected a model that is whole on its rank, plain or in DistributedDataParallel"
            )


def _is_sharded(parameter: Tensor | None) -> bool:
    if parameter is None or type(parameter.data) is Tensor:
        return False
    placements = getattr(parameter, "placements", ())  # of a DTensor
    return any(not placement.is_replicate() for placement in placements)


@contextlib.contextmanager
def bypass_ddp(modules: list[nn.Module]) -> Iterator[None]:
    """A context in which DistributedDataParallel wrappers among the modules only call the module that they wrap.

    Their own forward broadcasts buffers and, after the first backward, rebuilds buckets; both need all ranks, but ranks
    may take different numbers of steps. Compiled code that uses a wrapper notices the change of its `forward`.
    """
    if not has_ranks():
        yield
        return
    wrappers = [module for module in modules if isinstance(module, DistributedDataParallel)]
    before = [wrapper.__dict__.get("forward") for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            # Without nn.Module's slow __setattr__. A method, so that deepcopy binds it to the copied wrapper.
            object.__setattr__(wrapper, "forward", types.MethodType(_bypass, wrapper))
        yield
    finally:
        for wrapper, forward in zip(wrappers, before, strict=True):
            object.__delattr__(wrapper, "forward")
            if forward is not None:
                object.__setattr__(wrapper, "forward", forward)


def _bypass(wrapper: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
    return wrapper.module(*args, **kwargs)
