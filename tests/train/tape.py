"""A CUDA graph played on the CPU: what it froze at its capture stays frozen, what it cannot capture it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Work = Callable[[], None]

# On a GPU each of them makes the host wait for the device, which ends a capture: a value or a shape that depends on
# values is read, or numbers are copied from the host.
REFUSED = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "_unique2",
}

# Written without their schemas saying so.
_STATISTICS = {"running_mean", "running_var"}


class Tape:
    """Stands for `CudaCapture`: operations are recorded with the tensors they had, and run again on these.

    Nothing but operations is run again: no Python, so that a number, a branch or a seed that the host had when it was
    captured stays what it was. A capture runs nothing: whatever it changes in memory that was there before is restored,
    torch's generator included.

    Args:
        fails: raised by the capture, after this many operations.
    """

    def __init__(self, fails: Exception | None = None, after: int = 0) -> None:
        self.fails, self.after = fails, after
        self.warmed = self.captured = self.replayed = 0

    def warm_up(self, work: Work) -> None:
        self.warmed += 1
        work()

    def __call__(self, work: Work) -> Work:
        drawn = torch.get_rng_state()
        recorder = _Recorder(self.fails, self.after)
        try:
            with recorder:
                work()
        finally:
            recorder.restore()
            torch.set_rng_state(drawn)
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            recorder.run()

        return replay


class _Recorder(TorchDispatchMode):
    def __init__(self, fails: Exception | None, after: int) -> None:
        super().__init__()
        self.fails, self.after = fails, after
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ()
        masks = any(isinstance(i, Tensor) and i.dtype is torch.bool for i in indices)
        if name in REFUSED or masks:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if self.fails is not None and len(self.calls) == self.after:
            raise self.fails
        self.before += [(tensor, tensor.clone()) for tensor in _written(function, args, kwargs)]
        out = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, out))
        return out

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        self.before.clear()

    @torch.no_grad()
    def run(self) -> None:
        for function, args, kwargs, recorded in self.calls:
            there = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            out = function(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(out), strict=True):
                if isinstance(old, Tensor) and _address(old) not in there:
                    old.copy_(new)


def _written(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes into."""
    named = dict(zip((a.name for a in function._schema.arguments), args, strict=False)) | kwargs
    return [
        tensor
        for argument in function._schema.arguments
        if argument.name in named
        and (
            argument.name in _STATISTICS
            or (argument.alias_info is not None and argument.alias_info.is_write)
        )
        for tensor in tree_leaves(named[argument.name])
        if isinstance(tensor, Tensor)
    ]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
