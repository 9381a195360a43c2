"""Inputs of the stem's ops, and what a right result may be: held to float64, within the error of sums in float32.

A sum of n products in float32, in any order, is off by at most n * 2**-23 times the sum of the products' magnitudes:
products of half types are exact, an addition that rounds to nearest loses 2**-24 of a partial sum, and one of the
tensor cores, which cut off, 2**-23. In float32 a product is rounded too, by 2**-24, which the factor 2 leaves room for.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iaat_fast.ops import primitives, reference

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# (C, O, H, W): tiles cut on both sides, a single pixel, whole tiles, a row just longer than a tile, every C, and O
# below a product's 16, in one piece, in five, and in pieces that do not divide it.
SHAPES = [
    (3, 8, 5, 7),
    (3, 16, 1, 1),
    (3, 64, 32, 32),
    (1, 64, 9, 33),
    (4, 160, 6, 65),
    (3, 72, 3, 20),
]
UNIT = 2.0**-23


class Stem:
    """N = 3 images and K candidates of each; the last image's gradient is 0, or, `poisoned`, NaN here and there."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        *,
        k: int = 1,
        layout: str = "contiguous",
        poisoned: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        channels, outputs, height, width = shape
        generator = torch.Generator().manual_seed(sum(shape) + k)
        form = LAYOUTS[layout]

        def rand(*size: int) -> Tensor:
            return torch.rand(size, generator=generator)

        def randn(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        rows = 3 * k
        x = rand(3, channels, height, width)
        x_adv = x.repeat(k, 1, 1, 1) + 0.2 * (rand(rows, channels, height, width) - 0.5)
        grad = randn(rows, outputs, height, width)
        grad[2] = 0.0
        if poisoned:
            x[rand(*x.shape) < 0.02] = math.nan
            x[1, 0, 0, 0] = math.nan
            grad[rand(*grad.shape) < 0.1 / outputs] = math.nan
            grad[0, 1, -1, -1] = math.nan
        self.dtype = dtype
        self.x = x.to(device).contiguous(memory_format=form)
        self.x_adv = x_adv.to(device).contiguous(memory_format=form)
        self.grad = grad.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.weight = (randn(outputs, channels, 3, 3) / (9 * channels) ** 0.5).to(device, dtype)
        self.weight = self.weight.contiguous(memory_format=form)
        self.bias = (randn(outputs) / 4).to(device, dtype)
        self.mean, self.std = rand(channels).to(device), (0.2 + rand(channels)).to(device)
        radii = torch.tensor([8 / 255, 0.0, 0.3, 1e-3]).repeat(rows)[:rows]
        self.eps = radii.to(device)
        self.alpha = self.eps / 4 + (self.eps > 0) * 0.01

    def forward_args(self, floor: float = 0.0, ceiling: float = math.inf) -> tuple[Any, ...]:
        return self.x, self.mean, self.std, self.weight, self.bias, floor, ceiling

    def step_args(self, targeted: bool, stats: Tensor | None) -> tuple[Any, ...]:
        """A copy of x_adv first: it is written."""
        return (
            self.x_adv.clone(),
            self.grad,
            self.weight,
            self.x,
            self.eps,
            self.alpha,
            0.1,
            0.9,
            targeted,
            stats,
        )

    def output(self) -> tuple[Tensor, Tensor]:
        """What the convolution and the bias give in float64, and the bound of a float32 sum's error."""
        images = primitives.normalised(self.x, self.mean, self.std).to(self.dtype).double()
        weight, bias = self.weight.double(), self.bias.double()
        exact = F.conv2d(images, weight, bias, padding=1)
        magnitude = F.conv2d(images.abs(), weight.abs(), bias.abs(), padding=1)
        return exact, (9 * self.x.shape[1] + 1) * UNIT * magnitude

    def gradient(self) -> tuple[Tensor, Tensor]:
        """The gradient of the normalised images in float64, and the bound of a float32 sum's error."""
        grad, weight = self.grad.double(), self.weight.double()
        exact = F.conv_transpose2d(grad, weight, padding=1)
        magnitude = F.conv_transpose2d(grad.abs(), weight.abs(), padding=1)
        return exact, 9 * self.weight.shape[0] * UNIT * magnitude


def assert_forward_right(
    case: Stem,
    backend: ModuleType,
    floor: float = 0.0,
    ceiling: float = math.inf,
    *,
    spreading: bool = False,
) -> None:
    """Within the sum's error and one rounding of the exact result, NaN where that is.

    `spreading`: NaN may also lie next to where it belongs. oneDNN's products of bfloat16 take two columns at a time,
    where a kernel of three ends in one that it multiplies with 0; so do all convolutions of such a network.
    """
    out = backend.stem_conv_relu(*case.forward_args(floor, ceiling))
    assert out.dtype is case.dtype
    assert out.stride() == torch.empty(out.shape, memory_format=torch.channels_last).stride()
    exact, error = case.output()
    exact = exact.clamp(floor, ceiling)  # moves no two numbers apart
    excused = beside(exact.isnan()) if spreading else torch.zeros_like(exact, dtype=torch.bool)
    assert torch.equal(out.isnan() & ~excused, exact.isnan())
    info = torch.finfo(case.dtype)
    rounding = (info.eps * (exact.abs() + error)).clamp(min=info.smallest_normal * info.eps) / 2
    wrong = ((out.double() - exact).abs() > error + rounding) & ~excused
    assert not wrong.any(), f"{int(wrong.sum())} of {out.numel()}, first at {wrong.nonzero()[0]}"


def assert_step_right(
    case: Stem,
    backend: ModuleType,
    *,
    targeted: bool = False,
    counted: bool = True,
    spreading: bool = False,
) -> None:
    """The step that the exact gradient takes, bit for bit; one of the three there are where its sign is not certain."""
    stats = torch.tensor([7, 9], device=case.x.device) if counted else None
    args = case.step_args(targeted, stats)
    backend.stem_conv_step_(*args)
    exact, error = case.gradient()
    certain = (exact.abs() > error) | (error == 0) | exact.isnan()
    # Over 160 outputs the bound is 1e-4 times the sum of magnitudes, itself 30 times a sum's deviation.
    assert certain.double().mean() > 0.98
    if spreading:
        certain &= ~beside(exact.isnan())
    direction = torch.where(exact.isnan(), exact, exact.sign()).float()
    right = stepped(case, direction, targeted)
    same = equal(args[0], right)
    assert bool(same[certain].all()), f"{int((~same & certain).sum())} of {same.numel()} differ"
    either = [stepped(case, torch.full_like(direction, d), targeted) for d in (-1.0, 0.0, 1.0)]
    assert bool(torch.stack([equal(args[0], one) for one in either]).any(0)[~certain].all())
    if stats is not None:
        zeros, nans = (stats - torch.tensor([7, 9], device=stats.device)).tolist()
        surely = int((certain & (exact == 0)).sum())
        assert surely <= zeros <= surely + int((~certain).sum())
        bleeding = int(beside(exact.isnan()).sum()) if spreading else 0
        assert 0 <= nans - int(exact.isnan().sum()) <= bleeding


def stepped(case: Stem, direction: Tensor, targeted: bool) -> Tensor:
    """Where a gradient of these signs takes the candidates."""
    x_adv = case.x_adv.clone()
    rest = (case.x, case.eps, case.alpha, 0.1, 0.9, targeted, None)
    reference.pgd_step_linf_(x_adv, direction, *rest)
    return x_adv


def equal(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def beside(mask: Tensor) -> Tensor:
    """Where mask is not, but holds within a pixel."""
    return (F.max_pool2d(mask.float(), 3, stride=1, padding=1) > 0) & ~mask
