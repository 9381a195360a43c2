"""What a configuration trains: its network on the meta device, its images, and the passes counted on them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from iaat_fast import models
from iaat_fast.attacks import options
from iaat_fast.attacks.program import Program
from iaat_fast.messages import choice
from iaat_fast.plan.counting import (
    Pass,
    count_forward,
    count_gradient,
    count_program,
    count_update,
)
from iaat_fast.plan.passes import Kind
from iaat_fast.train.config import AttackConfig, TrainConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Images:
    """A data set: the shape of an image [C, H, W], its classes, its training images.

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
    """The data set of a configuration; with `data.limit`, its first images.

    Raises:
        ValueError: a data set whose images are not known here.
    """
    choice("data.name", config.data.name, DATA_SETS)
    images = DATA_SETS[config.data.name]
    samples = min(images.samples, config.data.limit or images.samples)
    return Images(
        shape=images.shape, classes=images.classes, samples=samples, resident=images.resident
    )


def build(config: TrainConfig, device: torch.device | str) -> nn.Module:
    """The network of a configuration."""
    images = images_of(config)
    with torch.device(device):
        return models.build_for(
            config.data.name,
            config.model.name,
            num_classes=images.classes,
            in_channels=images.shape[0],
            width=config.model.width,
            depth=config.model.depth,
        )


class Counts:
    """The passes of a configuration's network, each counted once for every batch size.

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
        self.is_copied = _is_copied(config.attack, precision)
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
        # Autocast, all in its dtype: nearly what it does for a network of convolutions.
        network = network if dtype is None else build(self.config, "meta").to(dtype)
        return count_update(network.train(), shape)

    def _count_gradient(self, shape: tuple[int, ...]) -> Pass:
        """A gradient of the images, of what it is taken of in an attack."""
        if self.config.attack.bn != "eval":
            return count_gradient(self.network.train(), shape)
        network = self.network.eval()
        if not self.is_copied:
            return count_gradient(network, shape)
        dtype = _DTYPES.get(self.precisions["gradient"])
        x = torch.empty(shape, device="meta").contiguous(memory_format=torch.channels_last)
        return count_program(Program(network, x, dtype=dtype), x)


def _is_copied(config: AttackConfig, precision: str) -> bool:
    return config.bn == "eval" and options.resolve_engine(config.engine, precision).shadow
