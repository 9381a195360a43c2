"""The cost of a pass of a configuration's network: operations, bytes and saved activations, on the meta device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from iaat_fast import validate
from iaat_fast.attacks import options
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.passes import Kind
from iaat_fast.train.setup import build_model

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# These allocate memory and move no data.
_ALLOCATE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass(frozen=True, kw_only=True)
class Images:
    """The facts about a data set that a plan needs.

    shape: of an image, [C, H, W].
    samples: number of training images.
    resident: whether training keeps all images on the device.
    """

    shape: tuple[int, int, int]
    classes: int
    samples: int
    resident: bool


DATA_SETS: dict[str, Images] = {
    "digits": Images(shape=(1, 8, 8), classes=10, samples=1437, resident=True),
    "cifar10": Images(shape=(3, 32, 32), classes=10, samples=50_000, resident=True),
    "cifar100": Images(shape=(3, 32, 32), classes=100, samples=50_000, resident=True),
    "imagenet": Images(shape=(3, 224, 224), classes=1000, samples=1_281_167, resident=False),
}


def images_of(config: TrainConfig) -> Images:
    """The data set of a configuration, cut to `data.limit`.

    Raises:
        ValueError: a data set whose images are not known here.
    """
    validate.choice("data.name", config.data.name, DATA_SETS)
    images = DATA_SETS[config.data.name]
    return replace(images, samples=min(images.samples, config.data.limit or images.samples))


def build(config: TrainConfig, device: torch.device | str) -> nn.Module:
    """The network of a configuration."""
    images = images_of(config)
    with torch.device(device):
        return build_model(
            config, config.data.name, num_classes=images.classes, in_channels=images.shape[0]
        )


class Counts:
    """The passes of a configuration's network, each counted once per batch size.

    Args:
        config: of the run.
        precision: of the attack, resolved: fp32, tf32, bf16 or fp16.
    """

    def __init__(self, config: TrainConfig, precision: str) -> None:
        self.config = config
        self.images = images_of(config)
        self.network = build(config, "meta")
        self.precisions: dict[Kind, str] = {
            "forward": "fp32",
            "gradient": precision,
            "update": "fp32" if config.optim.amp == "off" else config.optim.amp,
        }
        engine = options.resolve_engine(config.attack.engine, precision)
        self.is_copied = config.attack.bn == "eval" and engine.shadow
        self.of = functools.cache(self._count)

    @property
    def weights(self) -> int:
        """Parameters of the network."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def statistics(self) -> int:
        """Bytes of its buffers."""
        return sum(b.numel() * b.element_size() for b in self.network.buffers())

    def _count(self, kind: Kind, batch: int) -> Pass:
        shape = (batch, *self.images.shape)
        if kind == "forward":
            return count_forward(self.network.eval(), shape)
        if kind == "gradient":
            return self._count_gradient(shape)
        network = self.network
        dtype = _DTYPES.get(self.precisions["update"])
        # Autocast as if the whole network were in its dtype, which is nearly true for a network of convolutions.
        network = network if dtype is None else build(self.config, "meta").to(dtype)
        return count_update(network.train(), shape)

    def _count_gradient(self, shape: tuple[int, ...]) -> Pass:
        """A gradient with respect to the images, as in an attack: by the live network or the program of its copy."""
        if self.config.attack.bn != "eval":
            return count_gradient(self.network.train(), shape)
        network = self.network.eval()
        if not self.is_copied:
            return count_gradient(network, shape)
        dtype = _DTYPES.get(self.precisions["gradient"])
        x = torch.empty(shape, device="meta").contiguous(memory_format=torch.channels_last)
        return count_program(Program(network, x, dtype=dtype), x)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operator of a pass: its floating-point operations and the bytes that it reads and writes."""

    operations: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The cost of a pass over `images` images.

    Operations are those of convolutions and matrix products, two per multiply-add; elementwise ones are not counted,
    as in `FlopCounterMode`. Traffic is that of unfused operators: each reads its inputs from memory once and writes its
    outputs once.

    forward, backward: their operators, in order.
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


def count_forward(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward without gradient, on images of `shape` [N, C, H, W]."""
    x = _images(network, shape)
    with torch.no_grad():
        return Pass(images=len(x), forward=_kernels(lambda: network(x)))


def count_gradient(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradient with respect to the images, as in a step of an attack."""
    x = _images(network, shape).requires_grad_()
    return _count_both(network, x, [x])


def count_program(program: Program, x: Tensor) -> Pass:
    """A forward and the gradient with respect to x, on the meta device, by the program of a network's copy."""
    kept: list[Any] = []
    with torch.no_grad():
        forward = _kernels(lambda: kept.append(program.run_forward(x)))
        saved = _bytes_of(t for t in tree_leaves(kept) if isinstance(t, Tensor))
        backward = _kernels(lambda: program.run_backward(kept[0], program.logits(kept[0])))
    return Pass(images=len(x), forward=forward, backward=backward, saved=saved)


def count_update(network: nn.Module, shape: Sequence[int]) -> Pass:
    """A forward and the gradients with respect to the weights (and so to the inputs of all layers except the first)."""
    weights = [p for p in network.parameters() if p.requires_grad]
    return _count_both(network, _images(network, shape), weights)


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
        forward = _kernels(run)
    backward = _kernels(lambda: torch.autograd.grad(loss[0], list(wanted)))
    return Pass(images=len(x), forward=forward, backward=backward, saved=_bytes_of(kept))


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _kernels(run: Callable[[], object]) -> tuple[Kernel, ...]:
    with FlopCounterMode(display=False) as counter, _Watch(counter) as watch:
        run()
    return tuple(watch.kernels)


class _Watch(TorchDispatchMode):
    """Lists the operators that run inside this context; `counter`, an outer context, counts their operations."""

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
