"""The ops against eager torch and against the bandwidth of a copy, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.interleave import interleave
from iaat_fast import ops

SHAPES = [(128, 3, 32, 32), (32, 3, 224, 224)]
LO, HI = 0.0, 1.0


class Case:
    """One step's tensors, and the ways to take it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        n = shape[0]
        self.x = torch.rand(shape, generator=generator).to(dtype)
        self.grad = torch.randn(shape, generator=generator).to(dtype)
        self.eps = torch.rand(n, generator=generator) * 16 / 255
        self.alpha = self.eps / 4
        self.x_adv = ops.random_start_linf(self.x, self.eps, seed=0)
        self.copied = torch.empty_like(self.x)
        column = (n, *[1] * (len(shape) - 1))
        self.radius = self.eps.to(dtype).view(column)
        self.step_size = self.alpha.to(dtype).view(column)
        self.bytes = self.x.numel() * self.x.element_size()

    def eager(self) -> Tensor:
        """Sign, scale, add, project, clamp: the loop body of torchattacks with a radius per sample."""
        x_adv = self.x_adv + self.step_size * self.grad.sign()
        delta = torch.clamp(x_adv - self.x, min=-self.radius, max=self.radius)
        return torch.clamp(self.x + delta, min=LO, max=HI)

    def fused(self) -> None:
        ops.pgd_step_linf_(self.x_adv, self.grad, self.x, self.eps, self.alpha, LO, HI)

    def copy(self) -> None:
        self.copied.copy_(self.x)


def name(value: object) -> str:
    return (
        "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_pgd_step(
    benchmark: Any, record: Callable[..., None], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """One fused pass against eager torch; bytes per second as a share of what a copy moves."""
    case = Case(shape, dtype)
    against_eager = interleave({"eager": case.eager, "fused": case.fused}, rounds=60, calls=10)
    times = interleave({"fused": case.fused, "copy": case.copy}, rounds=200, calls=10)
    moved = 4 * case.bytes / times.median("fused")  # reads x_adv, grad and x, writes x_adv
    copied = 2 * case.bytes / times.median("copy")
    ratio = against_eager.ratio("eager", "fused")
    low, middle, high = times.percentiles("fused")
    record(
        f"pgd_step_linf_ {name(shape)} {name(dtype)}: {middle * 1e6:.0f} us "
        f"[p20 {low * 1e6:.0f}, p80 {high * 1e6:.0f}], {ratio:.1f}x eager, "
        f"{moved / 1e9:.0f} GB/s = {moved / copied:.2f} of copy_ ({copied / 1e9:.0f} GB/s)",
        eager_over_fused=ratio,
        share_of_copy=moved / copied,
        fused_p20_us=low * 1e6,
        fused_p50_us=middle * 1e6,
        fused_p80_us=high * 1e6,
        gigabytes_per_second=moved / 1e9,
        copy_gigabytes_per_second=copied / 1e9,
    )
    benchmark(case.fused)


def reflect(position: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - position.abs()).abs()


def gathered_crops(images: Tensor, index: Tensor, padding: int = 4) -> Tensor:
    """Crop and flip in eager torch: whole images, then one gather by computed pixel numbers, then a division."""
    n, height, width, channels = len(index), *images.shape[1:]
    down, right = torch.randint(-padding, padding + 1, (2, n, 1))
    columns = torch.arange(width)
    flipped = torch.where(torch.rand(n, 1) < 0.5, width - 1 - columns, columns)
    row, column = reflect(torch.arange(height) + down, height), reflect(flipped + right, width)
    pixels = (row[:, :, None] * width + column[:, None, :]).view(n, 1, -1).expand(-1, channels, -1)
    planes = images.index_select(0, index).permute(0, 3, 1, 2).reshape(n, channels, -1)
    return planes.gather(2, pixels).view(n, channels, height, width).float().div_(255)


def test_random_crop_flip(benchmark: Any, record: Callable[..., None]) -> None:
    """A CIFAR batch out of 50,000 images: the op against the gather in eager torch, and against writing the result."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50_000, 32, 32, 3), generator=generator, dtype=torch.uint8)
    index = torch.randperm(50_000, generator=generator)[:128]
    written = torch.empty(128, 3, 32, 32)

    def fused() -> Tensor:
        return ops.random_crop_flip(images, index, 0)

    ways = {
        "eager": lambda: gathered_crops(images, index),
        "fused": fused,
        "fill": lambda: written.fill_(0.5),
    }
    times = interleave(ways, rounds=100, calls=10)
    ratio = times.ratio("eager", "fused")
    low, middle, high = times.percentiles("fused")
    record(
        f"random_crop_flip 128x3x32x32: {middle * 1e6:.0f} us [p20 {low * 1e6:.0f}, p80 {high * 1e6:.0f}], "
        f"{ratio:.1f}x eager, {middle / times.median('fill'):.1f} times as long as fill_",
        eager_over_fused=ratio,
        fused_p20_us=low * 1e6,
        fused_p50_us=middle * 1e6,
        fused_p80_us=high * 1e6,
        fill_p50_us=times.median("fill") * 1e6,
    )
    benchmark(fused)


def tiny_calls() -> dict[str, Callable[[], object]]:
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


@pytest.mark.parametrize("op", list(tiny_calls()))
def test_overhead(benchmark: Any, record: Callable[..., None], op: str) -> None:
    """A call of the public function on tensors of 96 elements, checks and dispatch included."""
    call = tiny_calls()[op]
    low, middle, high = interleave({op: call}, rounds=200, calls=100).percentiles(op)
    record(
        f"{op} on a tiny tensor: {middle * 1e6:.1f} us [p20 {low * 1e6:.1f}, p80 {high * 1e6:.1f}]",
        call_p50_us=middle * 1e6,
    )
    benchmark(call)
