"""The ops on the CPU: against eager torch and a copy; the overhead of a call; the ops' share of a training step."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.interleave import interleave
from benchmarks.kernels import expressions
from benchmarks.record import Record, Row
from iaat_fast import models, ops
from iaat_fast.data import Split
from iaat_fast.train import preset
from iaat_fast.train.dataloader import GlobalBatch
from iaat_fast.train.step import TrainingStep, make_memory

SHAPES = [(128, 3, 32, 32), (32, 3, 224, 224)]
DTYPES = (torch.float32, torch.bfloat16)
LO, HI = 0.0, 1.0
STEPS = 3

Providers = dict[str, Callable[[], object]]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-training-step",
        action="store_true",
        help="without the training step, which takes minutes",
    )


def complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """No default depends on `--quick`."""


def measure(options: argparse.Namespace, record: Record) -> Iterator[Row]:
    quick = options.quick
    for shape in SHAPES[: 1 if quick else None]:
        for dtype in DTYPES:
            yield step_row(shape, dtype, 5 if quick else 200)
    yield crop_row(1_000 if quick else 50_000, 5 if quick else 100)
    for name, call in tiny_calls().items():
        times = interleave({name: call}, rounds=5 if quick else 200, calls=100)
        yield Row(case=f"{name} on 96 elements", provider="iaat_fast").sampled(times.seconds[name])
    if not options.no_training_step:
        yield training_row(quick)


def calls() -> dict[str, Providers]:
    """All timed calls except the training step, by case and provider."""
    found = {
        _title(shape, dtype): step_providers(shape, dtype)[0]
        for shape in SHAPES
        for dtype in DTYPES
    }
    found["random_crop_flip 128x3x32x32"] = crop_providers()
    return found | {
        f"{name} on 96 elements": {"iaat_fast": call} for name, call in tiny_calls().items()
    }


def step_row(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> Row:
    """The fused PGD step against eager torch; its bytes per second as a share of those of a copy."""
    providers, size = step_providers(shape, dtype)
    # The copy is not timed in the same rounds as eager torch, which evicts the cache.
    against_eager = interleave(
        {name: providers[name] for name in ("eager", "iaat_fast")}, rounds=-(-rounds // 4), calls=10
    )
    times = interleave(
        {name: providers[name] for name in ("iaat_fast", "copy")}, rounds=rounds, calls=10
    )
    moved = 4 * size / times.median("iaat_fast")  # reads x_adv, grad and x, writes x_adv
    copied = 2 * size / times.median("copy")
    row = Row(case=_title(shape, dtype), provider="iaat_fast").sampled(times.seconds["iaat_fast"])
    row.figures = {
        "over_eager": against_eager.ratio("eager", "iaat_fast"),
        "share_of_copy": moved / copied,
        "gigabytes_per_second": moved / 1e9,
        "copy_gigabytes_per_second": copied / 1e9,
    }
    return row


def crop_row(images: int, rounds: int) -> Row:
    """The op against a gather in eager torch, and against only writing the result."""
    times = interleave(crop_providers(images), rounds=rounds, calls=10)
    row = Row(case="random_crop_flip 128x3x32x32", provider="iaat_fast")
    row.sampled(times.seconds["iaat_fast"])
    row.figures = {
        "over_eager": times.ratio("eager", "iaat_fast"),
        "fill_p50_s": times.median("fill"),
    }
    return row


def step_providers(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Providers, int]:
    """A PGD step in eager torch and by the op, and a copy; second, the bytes of the images."""
    generator, n = torch.Generator().manual_seed(0), shape[0]
    x = torch.rand(shape, generator=generator).to(dtype)
    grad = torch.randn(shape, generator=generator).to(dtype)
    eps = torch.rand(n, generator=generator) * 16 / 255
    alpha = eps / 4
    x_adv, copied = ops.random_start_linf(x, eps, seed=0), torch.empty_like(x)
    column = (n, *[1] * (len(shape) - 1))
    radius, step = eps.to(dtype).view(column), alpha.to(dtype).view(column)
    providers: Providers = {
        "eager": lambda: expressions.pgd_step_linf_(x_adv, grad, x, radius, step, LO, HI),
        "iaat_fast": lambda: ops.pgd_step_linf_(x_adv, grad, x, eps, alpha, LO, HI),
        "copy": lambda: copied.copy_(x),
    }
    return providers, x.numel() * x.element_size()


def crop_providers(many: int = 50_000) -> Providers:
    """Crop and flip of a batch out of CIFAR's many images, in eager torch and by the op; and filling the result."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (many, 32, 32, 3), generator=generator, dtype=torch.uint8)
    index = torch.randperm(many, generator=generator)[:128]
    written = torch.empty(128, 3, 32, 32)
    return {
        "eager": lambda: gathered_crops(images, index),
        "iaat_fast": lambda: ops.random_crop_flip(images, index, 0),
        "fill": lambda: written.fill_(0.5),
    }


def gathered_crops(images: Tensor, index: Tensor, padding: int = 4) -> Tensor:
    """Crop and flip in eager torch: whole images, then one gather by computed pixel numbers, then a division."""
    n, height, width, channels = len(index), *images.shape[1:]
    down, right = torch.randint(-padding, padding + 1, (2, n, 1))
    columns = torch.arange(width)
    flipped = torch.where(torch.rand(n, 1) < 0.5, width - 1 - columns, columns)
    row, column = (
        size - 1 - (size - 1 - place.abs()).abs()
        for place, size in ((torch.arange(height) + down, height), (flipped + right, width))
    )
    pixels = (row[:, :, None] * width + column[:, None, :]).view(n, 1, -1).expand(-1, channels, -1)
    planes = images.index_select(0, index).permute(0, 3, 1, 2).reshape(n, channels, -1)
    return planes.gather(2, pixels).view(n, channels, height, width).float().div_(255)


def tiny_calls() -> Providers:
    """The public functions on at most 96 elements, where checks and dispatch take most of the time."""
    x = torch.rand(2, 3, 4, 4)
    x_adv, grad, radii = x.clone(), torch.randn_like(x), torch.full((2,), 0.03)
    logits, y, memory = torch.randn(2, 10), torch.tensor([1, 2]), torch.zeros(2)
    index, three = torch.tensor([0, 1]), torch.randn(6, 10)
    images, scale = torch.randint(256, (2, 6, 8, 1), dtype=torch.uint8), torch.ones(3)
    return {
        "pgd_step_linf_": lambda: ops.pgd_step_linf_(x_adv, grad, x, radii, radii),
        "project_linf": lambda: ops.project_linf(x_adv, x, radii),
        "random_start_linf": lambda: ops.random_start_linf(x, radii, 0, index),
        "ce_cotangent": lambda: ops.ce_cotangent(logits, y),
        "select_epsilon_": lambda: ops.select_epsilon_(memory, index, three, y, 0.01, 0.1),
        "random_crop_flip": lambda: ops.random_crop_flip(images, index, 0),
        "relu_backward_": lambda: ops.relu_backward_(grad, x),
        "scale_shift_relu": lambda: ops.scale_shift_relu(x, scale, scale),
        "scale_shift_relu_backward_": lambda: ops.scale_shift_relu_backward_(grad, x, scale),
    }


class Stopwatch:
    """Seconds spent inside wrapped calls, outermost ones only."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        return timed


def training_row(quick: bool) -> Row:
    """The share of a training step outside the network's forward and backward, for warm-up steps of cifar10-resnet18.

    These steps of IAAT have the fewest passes, and so the largest share. Fetching, augmentation, random start,
    cotangents, fused steps, the memory and the optimizer are outside.
    """
    config = preset("cifar10-resnet18", optim={"batch_size": 8} if quick else {})
    batch = config.optim.batch_size
    generator = torch.Generator().manual_seed(0)
    split = Split(
        torch.randint(256, (STEPS * batch, 32, 32, 3), generator=generator, dtype=torch.uint8),
        torch.randint(10, (STEPS * batch,), generator=generator),
    )
    model = models.build("resnet18", width=4 if quick else None, depth=10 if quick else None)
    memory = make_memory(config, STEPS * batch, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=0.9)
    step = TrainingStep(config, model, memory, optimizer, torch.device("cpu"))
    network, shares = Stopwatch(), []
    with (
        mock.patch.object(model, "forward", network.wrap(model.forward)),
        mock.patch.object(torch.autograd, "grad", network.wrap(torch.autograd.grad)),
        mock.patch.object(Tensor, "backward", network.wrap(Tensor.backward)),
    ):
        model(torch.rand(2, 3, 32, 32))
        for number, index in enumerate(torch.arange(STEPS * batch).split(batch)):
            network.seconds, start = 0.0, time.perf_counter()
            x = ops.random_crop_flip(split.images, index, seed=number)
            step(GlobalBatch.of(x, split.labels[index], index), epoch=0, seed=number)
            shares.append(1 - network.seconds / (time.perf_counter() - start))
    case = f"training step of cifar10-resnet18, batch {batch}"
    return Row(
        case=case, provider="iaat_fast", metric="share outside forward and backward", unit=""
    ).sampled(shares)


def _title(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"pgd_step_linf_ {'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
