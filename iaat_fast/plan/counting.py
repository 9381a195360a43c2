"""Operations, memory traffic and saved activations of one pass of a network, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from iaat_fast.attacks.program import Program

# They hand out memory and move nothing.
_ALLOCATE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operator of a pass: its floating-point operations and the bytes that it reads and writes."""

    operations: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass over `images` images takes.

    Operations are those of convolutions and matrix products, two per multiply-add; elementwise ones are not counted,
    as in `FlopCounterMode`. Traffic is that of unfused operators: each reads its inputs from memory, and writes its
    outputs to it, once.

    forward, backward: their operators, in their order.
    saved: bytes kept from the forward for the backward, without the weights.
    """

    images: int
    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...] = ()
    saved: int = 0

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The operators of the whole pass."""
        return self.forward + self.backward

    @property
    def operations(self) -> int:
        """Of the whole pass."""
        return sum(kernel.operations for kernel in self.kernels)

    @property
    def backward_share(self) -> float:
        """Share of the operations that the backward takes."""
        return sum(kernel.operations for kernel in self.backward) / self.operations

    @property
    def bytes(self) -> int:
        """Traffic of the whole pass."""
        return sum(kernel.bytes for kernel in self.kernels)


def count_forward(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward without gradient, on images of `shape` [N, C, H, W]."""
    x = _images(network, shape)
    with torch.no_grad():
        return Pass(images=len(x), forward=_kernels(lambda: network(x)))


def count_gradient(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward, and the gradient of the images, as a step of an attack takes it."""
    x = _images(network, shape).requires_grad_()
    return _count_both(network, x, [x])


def count_program(program: Program, x: Tensor) -> Pass:
    """The same, as the program of a copy takes it; x on the meta device."""
    kept: list[Any] = []
    with torch.no_grad():
        forward = _kernels(lambda: kept.append(program.run_forward(x)))
        saved = _bytes_of(t for t in tree_leaves(kept) if isinstance(t, Tensor))
        backward = _kernels(lambda: program.run_backward(kept[0], program.logits(kept[0])))
    return Pass(images=len(x), forward=forward, backward=backward, saved=saved)


def count_update(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradients of the weights, which need those of all layers' inputs except the first's."""
    weights = [p for p in network.parameters() if p.requires_grad]
    return _count_both(network, _images(network, shape), weights)


def _images(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Images of the network's dtype, laid out as its convolutions like them."""
    dtype = next(network.parameters()).dtype
    x = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _count_both(network: nn.Module, x: Tensor, wanted: Sequence[Tensor]) -> Pass:
    """The forward, and the backward to `wanted`."""
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: list[Tensor] = []
    loss: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.append(tensor)
        return tensor

    def run() -> None:
        labels = torch.empty(len(x), dtype=torch.int64, device="meta")
        loss.append(F.cross_entropy(network(x).float(), labels))

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        forward = _kernels(run)
    backward = _kernels(lambda: torch.autograd.grad(loss[0], list(wanted)))
    return Pass(images=len(x), forward=forward, backward=backward, saved=_bytes_of(kept))


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _kernels(run: Callable[[], object]) -> tuple[Kernel, ...]:
    with FlopCounterMode(display=False) as counter, _Watch(counter) as watch:
        run()
    return tuple(watch.kernels)


class _Watch(TorchDispatchMode):
    """Lists the operators that run inside it, whose operations `counter`, outside it, counts."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        before = self.counter.get_total_flops()
        out = func(*args, **kwargs)
        if func.is_view or func._overloadpacket.__name__ in _ALLOCATE:
            return out
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        operations = self.counter.get_total_flops() - before
        self.kernels.append(Kernel(operations=operations, bytes=moved))
        return out
