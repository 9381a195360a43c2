"""The passes of a configuration: its data set, its network, and what each kind of pass through that costs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import nn

from iaat_fast import validate
from iaat_fast.attacks import options
from iaat_fast.attacks.gradients.program import Program
from iaat_fast.plan.kernels import (
    Pass,
    count_forward,
    count_gradient,
    count_optimizer,
    count_program,
    count_update,
    with_autocast,
    with_step,
)
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.passes import Kind
from iaat_fast.train.setup import build_model

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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

    @functools.cached_property
    def optimizer(self) -> Pass:
        """What follows each gradient of the weights."""
        return count_optimizer(self.network, averaged=self.config.optim.ema_decay > 0)

    def _count(self, kind: Kind, batch: int) -> Pass:
        shape = (batch, *self.images.shape)
        if kind == "forward":
            return count_forward(self.network.eval(), shape)
        if kind == "gradient":
            return with_step(self._count_gradient(shape), shape)
        network = self.network
        dtype = _DTYPES.get(self.precisions["update"])
        if dtype is None:
            return count_update(network.train(), shape)
        # Autocast as if the whole network were in its dtype, which is nearly true for a network of convolutions.
        low = build(self.config, "meta").to(dtype).train()
        return with_autocast(count_update(low, shape), network)

    def _count_gradient(self, shape: tuple[int, ...]) -> Pass:
        """A gradient with respect to the images, as in an attack: by the live network or the program of its copy."""
        if self.config.attack.bn != "eval":
            return count_gradient(self.network.train(), shape)
        network = self.network.eval()
        dtype = _DTYPES.get(self.precisions["gradient"])
        if not self.is_copied:
            if dtype is None:
                return count_gradient(network, shape)
            low = build(self.config, "meta").to(dtype).eval()
            return with_autocast(count_gradient(low, shape), network, backward=False)
        x = torch.empty(shape, device="meta").contiguous(memory_format=torch.channels_last)
        return count_program(self._program, x)

    @functools.cached_property
    def _program(self) -> Program:
        """Of the network's copy; it is exported once, for any number of images."""
        x = torch.empty((2, *self.images.shape), device="meta")
        return Program(self.network.eval(), x, dtype=_DTYPES.get(self.precisions["gradient"]))
