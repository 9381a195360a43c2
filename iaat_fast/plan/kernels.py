"""The kernels of a pass through a network, counted on the meta device: operations, bytes and how they are accessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from iaat_fast.attacks.gradients.program import Program

# In a program on a GPU these are part of the convolution's kernel that they follow.
_EPILOGUES = ("add_", "relu_", "clamp_", "hardtanh_")
# These copy from one memory format to another where the strides differ.
_COPIES = ("clone", "copy_", "_to_copy")
# These move no data.
_ALLOCATE = (
    "_unsafe_view",
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
)

Access = Literal["coalesced", "broadcast", "strided"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of a pass: its floating-point operations and the bytes that it reads and writes.

    elements: that it reads and writes.
    rows, columns: of the result of a matrix product, also of a convolution's (places x channels); 0 if tiles of it need
        not be counted: no product, or one whose sums are split over the multiprocessors (the gradient of weights).
    narrow: a convolution whose input channels do not fill vectors of 16 bytes.
    access: coalesced; broadcast, with a value per channel; or strided, from one memory format to another.
    """

    operations: int
    bytes: int
    elements: int = 0
    rows: int = 0
    columns: int = 0
    narrow: bool = False
    access: Access = "coalesced"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The cost of a pass over `images` images.

    Operations are those of convolutions and matrix products, two per multiply-add; elementwise ones are not counted,
    as in `FlopCounterMode`. Traffic is that of unfused operators, except in programs: each reads its inputs from memory
    once (BatchNorm in train mode twice) and writes its outputs once.

    forward, backward: their kernels, in order.
    launched: operators that the host launches, where no graph is replayed.
    saved: bytes kept from the forward for the backward, without the weights.
    """

    images: int
    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...] = ()
    launched: int = 0
    saved: int = 0

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the whole pass."""
        return self.forward + self.backward

    @property
    def operations(self) -> int:
        """Operations of the whole pass."""
        return sum(kernel.operations for kernel in self.kernels)

    @property
    def backward_share(self) -> float:
        """Share of the operations that the backward takes."""
        return sum(kernel.operations for kernel in self.backward) / self.operations

    @property
    def bytes(self) -> int:
        """Memory traffic of the whole pass, in bytes."""
        return sum(kernel.bytes for kernel in self.kernels)


def _own(operators: int) -> Pass:
    """Small operators, outside of the network."""
    return Pass(images=0, forward=(Kernel(operations=0, bytes=0),) * operators, launched=operators)


# Operators outside of the network, by count of a real step: of a whole step (its batch, augmentation, verdicts, totals)
# and of a call of an attack (its checks, start, radii and step sizes).
STEP, CALL = _own(40), _own(40)


def count_forward(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward without gradient, on images of `shape` [N, C, H, W]."""
    x = _images(network, shape)
    with torch.no_grad():
        forward = _watched(lambda: network(x))
    return Pass(images=len(x), forward=tuple(forward.kernels), launched=forward.operators)


def count_gradient(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradient with respect to the images, as in a step of an attack."""
    x = _images(network, shape).requires_grad_()
    return _count_both(network, x, [x])


def count_program(program: Program, x: Tensor) -> Pass:
    """A forward and the gradient with respect to x, on the meta device, by the program of a network's copy.

    On a GPU, sums and activations right after a convolution are part of its kernel, and are counted so.
    """
    kept: list[Any] = []
    with torch.no_grad():
        forward = _watched(lambda: kept.append(program.run_forward(x)), fuses=True)
        saved = _bytes_of(t for t in tree_leaves(kept) if isinstance(t, Tensor))
        backward = _watched(lambda: program.run_backward(kept[0], program.logits(kept[0])))
    return Pass(
        images=len(x),
        forward=tuple(forward.kernels),
        backward=tuple(backward.kernels),
        launched=forward.operators + backward.operators,
        saved=saved,
    )


def count_update(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradients with respect to the weights (and so to the inputs of all layers except the first)."""
    weights = [p for p in network.parameters() if p.requires_grad]
    return _count_both(network, _images(network, shape), weights)


def count_backward(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradients with respect to the images and the weights, as `loss.backward()` takes them."""
    weights = [p for p in network.parameters() if p.requires_grad]
    x = _images(network, shape).requires_grad_()
    counted = _count_both(network, x, [x, *weights])
    return replace(counted, launched=counted.launched + len(weights))


def with_autocast(counted: Pass, network: nn.Module, *, backward: bool = True) -> Pass:
    """A pass of a network in half precision, with the casts of its weights to it.

    backward: also those of the weights' gradients back.
    """
    layers = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    casts = tuple(
        Kernel(operations=0, bytes=6 * weight.numel(), elements=2 * weight.numel())
        for layer in layers
        for weight in layer.parameters(recurse=False)
    )
    back = casts if backward else ()
    return replace(
        counted,
        forward=casts + counted.forward,
        backward=counted.backward + back,
        launched=counted.launched + len(casts) + len(back),
    )


def count_optimizer(network: nn.Module, *, fused: bool = True, averaged: bool = False) -> Pass:
    """What follows the backward: SGD with momentum and weight decay, and the average of the weights.

    Fused, it reads weights, gradients and momentum and writes weights and momentum; else it takes four operators, with
    eleven such tensors (torch's foreach update).
    """
    weights = sum(p.numel() for p in network.parameters())
    tensors = sum(1 for _ in network.parameters())
    moved = ([5] if fused else [3, 2, 3, 3]) + ([3] if averaged else [])
    kernels = tuple(
        Kernel(operations=0, bytes=4 * number * weights, elements=number * weights)
        for number in moved
    )
    # Each gradient is handed over by a node of autograd, at the price of an operator.
    return Pass(images=0, forward=kernels, launched=len(kernels) + tensors)


def with_step(counted: Pass, shape: Sequence[int]) -> Pass:
    """A gradient of the images with what makes a step of an attack of it: the cotangent and the projected step."""
    image = math.prod(shape)
    cotangent = Kernel(operations=0, bytes=0)
    step = Kernel(operations=0, bytes=4 * 4 * image, elements=4 * image)
    return replace(
        counted,
        forward=(*counted.forward, cotangent),
        backward=(*counted.backward, step),
        launched=counted.launched + 2,
    )


def _images(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Images of the network's dtype on the meta device, in channels last."""
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
        forward = _watched(run)
    backward = _watched(lambda: torch.autograd.grad(loss[0], list(wanted)))
    return Pass(
        images=len(x),
        forward=tuple(forward.kernels),
        backward=tuple(backward.kernels),
        launched=forward.operators + backward.operators,
        saved=_bytes_of(kept),
    )


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _watched(run: Callable[[], object], *, fuses: bool = False) -> _Watch:
    with FlopCounterMode(display=False) as counter, _Watch(counter, fuses=fuses) as watch:
        run()
    return watch


class _Watch(TorchDispatchMode):
    """Lists the kernels of the operators that run inside this context.

    counter: an outer context, which counts operations.
    fuses: whether what follows a convolution in place is part of its kernel.
    operators: the number of operators.
    """

    def __init__(self, counter: FlopCounterMode, *, fuses: bool = False) -> None:
        super().__init__()
        self.counter, self.fuses = counter, fuses
        self.kernels: list[Kernel] = []
        self.operators = 0
        self._fusing: int | None = None  # the storage that the last convolution wrote

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        before = self.counter.get_total_flops()
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        if func.is_view or name in _ALLOCATE:
            return out
        operations = self.counter.get_total_flops() - before
        if self.fuses and name in _EPILOGUES and _storage(out) == self._fusing:
            if len(args) > 1 and isinstance(
                args[1], Tensor
            ):  # the residual, read by the convolution
                last = self.kernels[-1]
                more = replace(last, bytes=last.bytes + _size(args[1]))
                self.kernels[-1] = replace(more, elements=last.elements + args[1].numel())
            return out
        self.operators += 1
        self._fusing = None
        if name == "convolution":
            self._convolution(args, out, operations)
        elif name == "convolution_backward":
            self._convolution_backward(args, out, operations)
        elif name in ("native_batch_norm", "native_batch_norm_backward"):
            self._batch_norm(name, args, out)
        else:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            rows, columns = out.shape[-2:] if operations else (0, 0)
            access: Access = "coalesced" if operations else _access(name, tensors)
            self._add(tensors, operations, rows=rows, columns=columns, access=access)
        return out

    def _add(self, tensors: Sequence[Tensor], operations: int = 0, **fields: Any) -> None:
        size, elements = sum(map(_size, tensors)), sum(t.numel() for t in tensors)
        kernel = Kernel(operations=operations, bytes=size, elements=elements, **fields)
        self.kernels.append(kernel)

    def _convolution(self, args: tuple[Any, ...], out: Tensor, operations: int) -> None:
        x, weight, bias = args[:3]
        is_fused = self.fuses and not _narrow(x)
        result = _product(out, args[8])
        self._add((x, weight, out), operations, narrow=_narrow(x), **result)
        if is_fused:
            self._fusing = _storage(out)
        elif bias is not None:
            self._add((out, out), access="broadcast")

    def _convolution_backward(self, args: tuple[Any, ...], out: Any, operations: int) -> None:
        """The gradients of the images and of the weights, which are a product each."""
        grad, x, weight = args[:3]
        wanted = args[10][:2]
        each = operations // max(1, sum(wanted))
        if wanted[0]:
            self._add((grad, weight, out[0]), each, narrow=_narrow(x), **_product(x, args[9]))
        if wanted[1]:
            self._add((grad, x, out[1]), each, narrow=_narrow(x))

    def _batch_norm(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """BatchNorm reads its inputs twice in train mode, first for the statistics.

        In eval mode its backward on CUDA returns the gradient contiguous, whatever the format of its inputs, and the
        convolution before it copies that into its own format.
        """
        is_backward = name.endswith("backward")
        trains = args[7] if is_backward else args[5]
        inputs = args[:2] if is_backward else args[:1]
        if trains:
            self._add(inputs, access="broadcast")
            self._add((*inputs, out[0]), access="broadcast")
        elif not is_backward:
            self._add((*inputs, out[0]), access="broadcast")
        else:
            if args[9][1]:
                self._add(inputs, access="broadcast")
            self._add((inputs[0], out[0]), access="strided")
            self._add((out[0], out[0]), access="strided")


def _access(name: str, tensors: Sequence[Tensor]) -> Access:
    """Of an operator without products: strided between memory formats, broadcast where an operand is smaller."""
    if name in _COPIES and len({t.stride() for t in tensors if t.dim() == 4}) > 1:
        return "strided"
    largest = max((t.numel() for t in tensors), default=0)
    return "broadcast" if any(1 < t.numel() < largest for t in tensors) else "coalesced"


def _product(result: Tensor, groups: int) -> dict[str, int]:
    """Rows and columns of a convolution's result as that of a matrix product, for each of its groups in turn."""
    channels = result.shape[1]
    return {"rows": result.numel() // channels * groups, "columns": channels // groups}


def _narrow(x: Tensor) -> bool:
    return x.shape[1] * x.element_size() % 16 != 0


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: Any) -> int | None:
    return tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else None
