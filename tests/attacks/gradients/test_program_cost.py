"""What a step of PGD costs where no clock is needed: operations dispatched, and bytes read and written."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from iaat_fast import models
from iaat_fast.attacks import PGD, EngineOptions
from tests.attacks.networks import with_statistics

# Nothing is computed or copied: another look at the same memory, or memory whose values are still to come.
_NO_WORK = ("empty", "empty_like", "empty_strided", "detach", "view", "lift_fresh")


class Dispatched(TorchDispatchMode):
    """Counts operations, views apart, and bytes: of each tensor that one takes or gives.

    `of_images` are the bytes of tensors with a part for each image, known by a first size that is a multiple of the
    number of images (7 divides no weight's first size); `maps` those of them that have more than one pixel.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        self.work: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.bytes = self.of_images = self.maps = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        name = str(func)
        if func.is_view or func._schema.name.split("::")[1] in _NO_WORK:
            self.views[name] += 1
            return found
        self.work[name] += 1
        written = [] if func._schema.is_mutable else made
        changed = [
            t
            for argument, t in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            and isinstance(t, Tensor)
        ]  # fmt: skip
        for tensor in (*read, *written, *changed):
            shape = _stored(tensor)
            size = shape.numel() * tensor.element_size()
            self.bytes += size
            per_image = shape[:1].numel() % self.images == 0
            self.of_images += size * per_image
            self.maps += size * (per_image and shape[2:].numel() > 1)
        return found


def _stored(tensor: Tensor) -> torch.Size:
    """What memory holds of a tensor: an expanded dimension lies there once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return torch.Size(size if stride else 1 for size, stride in sizes)


PROGRAM = EngineOptions()
MODULES = EngineOptions(fold=False)


def in_bf16(model: nn.Module, engine: EngineOptions) -> PGD:
    return PGD(model, precision="bf16", engine=engine, seed=0)


def cost_of_a_step(pgd: PGD, x: Tensor) -> Dispatched:
    """What PGD dispatches for two steps more than for one."""
    y = torch.zeros(len(x), dtype=torch.int64)
    pgd.steps = 1
    pgd(x, y)
    found = []
    for pgd.steps in (1, 2):
        with Dispatched(len(x)) as seen:
            pgd(x, y)
        found.append(seen)
    fewer, more = found
    assert "copy" in pgd.network.gradient_source
    more.work.subtract(fewer.work)
    more.views.subtract(fewer.views)
    more.bytes -= fewer.bytes
    more.of_images -= fewer.of_images
    more.maps -= fewer.maps
    more.work, more.views = +more.work, +more.views
    return more


NETWORKS = {
    "resnet18": (68, 32, {"width": 8}),
    "wrn32-10": (124, 32, {"width": 1}),
    "imagenet-resnet50": (172, 64, {"width": 8}),
}


# Megabytes of a step at full width: the program's, and those of the same copy differentiated by autograd.
SIDES = {"resnet18": (32, 16), "wrn32-10": (32, 8), "imagenet-resnet50": (224, 64)}
BATCH_OF_128 = {
    "resnet18": [1455, 2814],
    "wrn32-10": [8029, 13799],
    "imagenet-resnet50": [26030, 51012],
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_dispatches_few_operations_and_moves_fewer_bytes_than_autograd(name: str) -> None:
    most, side, options = NETWORKS[name]
    model = with_statistics(models.build(name, **options))
    x = torch.rand(2, 3, side, side)
    program, modules = (cost_of_a_step(in_bf16(model, engine), x) for engine in (PROGRAM, MODULES))
    for kind, cost in (("program", program), ("modules", modules)):
        counted = "".join(f"\n{n:5d}  {call}" for call, n in cost.work.most_common())
        print(
            f"\n{name}, narrow, {kind}: {cost.work.total()} operations, {cost.views.total()} views, "
            f"{cost.bytes / 1e6:.2f} MB{counted}"
        )
    assert program.work.total() <= most
    assert program.bytes < modules.bytes


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN fuses no bfloat16 here"
)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bytes_of_a_step_at_full_width(name: str) -> None:
    """Weights, so much for each image and so much for each of its pixels, which a small batch tells.

    Of images whose last feature map is of two pixels by two, or by four; docs/architecture.md has the figures.
    """
    model = with_statistics(models.build(name))
    side, small = SIDES[name]
    found = []
    for kind, engine in (("program", PROGRAM), ("modules", MODULES)):
        pgd = in_bf16(model, engine)
        seven = cost_of_a_step(pgd, torch.rand(7, 3, small, small))
        image, weights = seven.of_images / 7, seven.bytes - seven.of_images
        pixels = seven.maps / 7  # of a small image
        image += pixels * ((side / small) ** 2 - 1)
        found.append(round((weights + 128 * image) / 1e6))
        print(
            f"\n{name}, batch 128, {kind}: {found[-1]:,} MB a step, {weights / 1e6:.1f} MB of it weights"
        )
    assert found == BATCH_OF_128[name]
