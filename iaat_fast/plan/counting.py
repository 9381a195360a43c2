"""Operations, memory traffic and saved activations of one pass of a network, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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

    forward, input_gradient, weight_gradient: operations of each part.
    kernels: operators, in their order.
    saved: bytes kept from the forward for the backward, without the weights.
    """

    images: int
    forward: int
    input_gradient: int
    weight_gradient: int
    kernels: tuple[Kernel, ...]
    saved: int

    @property
    def operations(self) -> int:
        """Of the whole pass."""
        return self.forward + self.input_gradient + self.weight_gradient

    @property
    def bytes(self) -> int:
        """Traffic of the whole pass."""
        return sum(kernel.bytes for kernel in self.kernels)


def count_forward(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward without gradient, on images of `shape` [N, C, H, W]."""
    x = _images(network, shape)
    with torch.no_grad():
        kernels = _kernels(lambda: network(x))
    return Pass(
        images=shape[0],
        forward=_operations(kernels),
        input_gradient=0,
        weight_gradient=0,
        kernels=tuple(kernels),
        saved=0,
    )


def count_gradient(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward, and the gradient of the images, as a step of an attack takes it."""
    x = _images(network, shape).requires_grad_()
    forward, backward, saved = _forward_and_backward(network, x, [x])
    return Pass(
        images=shape[0],
        forward=_operations(forward),
        input_gradient=_operations(backward),
        weight_gradient=0,
        kernels=(*forward, *backward),
        saved=saved,
    )


def count_program(program: Program, x: Tensor) -> Pass:
    """The same, as the program of a copy takes it; x on the meta device."""
    kept: list[Any] = []
    with torch.no_grad():
        forward = _kernels(lambda: kept.append(program.run_forward(x)))
        storages = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes()
            for t in tree_leaves(kept)
            if isinstance(t, Tensor)
        }
        backward = _kernels(lambda: program.run_backward(kept[0], program.logits(kept[0])))
    return Pass(
        images=len(x),
        forward=_operations(forward),
        input_gradient=_operations(backward),
        weight_gradient=0,
        kernels=(*forward, *backward),
        saved=sum(storages.values()),
    )


def count_update(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradients of the weights; those of the layers' inputs are needed for them but for the first."""
    weights = [p for p in network.parameters() if p.requires_grad]
    x = _images(network, shape)
    forward, backward, saved = _forward_and_backward(network, x, weights)
    x.requires_grad_()
    _, both, _ = _forward_and_backward(network, x, [x, *weights])
    _, of_images, _ = _forward_and_backward(network, x, [x])
    of_weights = _operations(both) - _operations(of_images)
    return Pass(
        images=shape[0],
        forward=_operations(forward),
        input_gradient=_operations(backward) - of_weights,
        weight_gradient=of_weights,
        kernels=(*forward, *backward),
        saved=saved,
    )


def _images(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Images of the network's dtype, laid out as its convolutions like them."""
    dtype = next(network.parameters()).dtype
    x = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _forward_and_backward(
    network: nn.Module, x: Tensor, wanted: Sequence[Tensor]
) -> tuple[list[Kernel], list[Kernel], int]:
    """The operators of the forward and of the backward to `wanted`, and the bytes saved between them."""
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor
        return tensor

    loss: list[Tensor] = []

    def run() -> None:
        logits = network(x)
        labels = torch.empty(len(x), dtype=torch.int64, device="meta")
        loss.append(F.cross_entropy(logits.float(), labels))

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        forward = _kernels(run)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    backward = _kernels(lambda: torch.autograd.grad(loss[0], list(wanted)))
    return forward, backward, saved


def _operations(kernels: Sequence[Kernel]) -> int:
    return sum(kernel.operations for kernel in kernels)


def _kernels(run: Callable[[], object]) -> list[Kernel]:
    watch = _Watch()
    with watch:
        run()
    return watch.kernels


class _Watch(TorchDispatchMode):
    """Lists the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if func.is_view or packet.__name__ in _ALLOCATE:
            return out
        counter = flop_registry.get(packet)
        operations = 0 if counter is None else counter(*args, **kwargs, out_val=out)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in tensors)
        self.kernels.append(Kernel(operations=int(operations), bytes=moved))
        return out
